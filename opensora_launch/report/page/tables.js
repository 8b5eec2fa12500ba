// Tables, whose rows are sorted by a column when its heading is pressed.
const SORTED_FROM = 3; // rows; fewer are read at a glance
const POWERS = { k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18 };
// `words`: columns aligned to the left; `long`: those of them with sentences; `quiet`: the heading above is the caption;
// `marked`: rows to point out, by number.
function table(caption, head, body, options = {}) {
  const { words = [], long = [], quiet = false, marked = [] } = options;
  const kind = (n) => [words.includes(n) || long.includes(n) ? "words" : "", long.includes(n) ? "long" : ""].join(" ").trim() || null;
  const rows = body.map((cells, k) => el("tr", { class: marked.includes(k) ? "marked" : null }, ...cells.map((text, n) => el(n === 0 ? "th" : "td", { scope: n === 0 ? "row" : null, class: kind(n) }, text))));
  const place = el("tbody", {}, ...rows);
  const sortable = rows.length >= SORTED_FROM;
  const heads = head.map((text, n) => el("th", { scope: "col", class: kind(n) }, sortable ? el("button", { type: "button", onclick: () => sort(n) }, text) : text));
  function sort(column) {
    const now = heads[column].getAttribute("aria-sort"), down = now === "ascending";
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    place.append(...sorted_rows(rows, column, down));
  }
  return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    el("table", {}, el("caption", { class: quiet ? "quiet" : null }, caption), el("thead", {}, el("tr", {}, ...heads)), place));
}
function sorted_rows(rows, column, down) {
  const text_of = (row) => row.children[column].textContent.trim();
  const keyed = rows.map((row) => [text_of(row), number_in(text_of(row)), row]);
  const numbers = keyed.every(([text, value]) => value !== null || is_blank(text));
  const order = numbers ? (a, b) => a[1] - b[1] : (a, b) => a[0].localeCompare(b[0], language, { numeric: true });
  const known = keyed.filter(([text]) => !is_blank(text)).sort(order), unknown = keyed.filter(([text]) => is_blank(text));
  return [...(down ? known.reverse() : known), ...unknown].map(([, , row]) => row); // what is unknown stays at the end
}
function is_blank(text) { return text === "" || text === "–"; }
// The number that a text begins with, with the power of its unit: "1.2 GB/s" is 1.2e9.
function number_in(text) {
  const found = /^\$?([+−-]?\d+(?:\.\d+)?)\s?(?:([kMGTPE])(?=\p{L}))?/u.exec(text);
  return found ? Number(found[1].replace("−", "-")) * (POWERS[found[2]] ?? 1) : null;
}
