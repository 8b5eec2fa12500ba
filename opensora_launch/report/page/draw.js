// Elements, numbers and colours.
const PARTS = ["setup", "load", "text", "compile", "image", "compute", "communication", "waiting", "idle", "vae", "save", "other"];
const KINDS = ["attention", "double", "single", "other"];
const LINE_INKS = 16, DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3]]; // 64 lines before two look the same
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((c) => c !== null && c !== undefined).map((c) => (c instanceof Node ? c : String(c))));
  return made;
}
function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
let unit = "GPU"; // what the counts of this page are of: "GPU" or "CPU rank"
function seconds(s) { return s === null || s === undefined ? "–" : s >= 100 ? s.toFixed(0) : s >= 10 ? s.toFixed(1) : s.toFixed(2); }
function percent(x, digits = 1) { return x === null || x === undefined ? "–" : (100 * x).toFixed(digits) + "%"; }
function gib(bytes) { return bytes === null || bytes === undefined ? "–" : (bytes / 2 ** 30).toFixed(bytes < 2 ** 33 ? 2 : 1) + " GiB"; }
function scaled(value, unit) {
  if (value === null || value === undefined) return "–";
  const names = ["", "k", "M", "G", "T", "P", "E"];
  let n = 0;
  while (Math.abs(value) >= 1000 && n < names.length - 1) { value /= 1000; n += 1; }
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ${names[n]}${unit}`;
}
function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim(); }
function part_colour(part, detail) { return part === "compute" && detail ? (detail === "other" ? "rest" : detail) : part; }
function part_name(part, detail) {
  if (detail === "preview") return t("preview");
  if (part === "compute" && detail) return detail === "other" ? t("compute_other") : t(detail);
  if (part === "communication" && detail) return `${t(part)}: ${detail}`;
  if (part === "waiting" && detail !== "") return `${t(part)}: ${t("rank_name", { rank: detail })}`;
  return t(part);
}
function celsius(value) { return value === null || value === undefined ? "–" : `${value} °C`; }
function ink_of_line(n) { return `s${n % LINE_INKS}`; } // lines never have the colour of a part
function dash_of_line(n) { return DASHES[Math.floor(n / LINE_INKS) % DASHES.length]; }
function line_key(n, text) { // a piece of the line: colour alone is not text that can be read
  return el("span", { class: "key" }, svg("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" }, svg("line", { x1: 1, x2: 25, y1: 4, y2: 4, stroke: `var(--${ink_of_line(n)})`, "stroke-width": 3, "stroke-dasharray": dash_of_line(n).join(" ") })), text);
}
function legend(entries) {
  return el("ul", { class: "legend" }, ...entries.map(([name, text]) => el("li", {}, el("i", { style: `background:var(--${name})` }), text)));
}
function section(id, title, about, ...content) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), about ? el("p", { class: "soft", id: `${id}-about` }, about) : null, ...content);
}
const tip = document.getElementById("tip");
function show_tip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - box.width - 4)) + "px";
  tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - box.height - 4)) + "px";
}
function hide_tip() { tip.hidden = true; }
