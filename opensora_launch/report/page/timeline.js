// The timeline of ranks. It has its own keys, so it is not a picture to a screen reader. `slow`: ranks to point out;
// `is_loud`: whether a line of what was measured belongs to one of them, by its name.
function timeline_view(data, slow, is_loud) {
  const wall = data.wall_s, state = { from: 0, to: wall, cursor: null, rank: 0, piece: null };
  const ranks = el("canvas", {
    tabindex: "0", role: "application", "aria-roledescription": t("timeline_role"), "aria-label": t("timeline_aria", { ranks: data.ranks.length, wall_s: wall }),
    "aria-describedby": "timeline-about", "aria-keyshortcuts": "ArrowLeft ArrowRight ArrowUp ArrowDown + - Home , . PageUp PageDown",
  });
  const range = el("span", { class: "soft", "aria-live": "polite" });
  const lane = data.ranks.length > 16 ? 14 : 24;
  const left = () => (innerWidth < 560 ? 40 : 72);
  const x_of = (s, width) => left() + ((s - state.from) / (state.to - state.from)) * (width - left() - 8);
  const axis = { wall, state, left, x_of, fit, ticks, draw, draw_cursor, time_at };
  const plots = plots_view(data.lines, axis, is_loud);

  function fit(canvas, height) {
    const ratio = devicePixelRatio || 1, width = canvas.parentElement ? canvas.parentElement.clientWidth : 300;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = height + "px";
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui, sans-serif";
    return [pen, width];
  }
  function ticks(pen, width, height, labels) {
    const span = state.to - state.from, raw = span / (width < 500 ? 4 : 8), power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= raw);
    pen.textAlign = "center";
    for (let s = Math.ceil(state.from / step) * step; s <= state.to; s += step) {
      const x = x_of(s, width);
      pen.fillStyle = colour("line");
      pen.fillRect(x, 0, 1, height - (labels ? 18 : 0));
      pen.fillStyle = colour("soft");
      if (labels) pen.fillText(`${+s.toFixed(6)} s`, Math.min(Math.max(x, left() + 12), width - 18), height - 4);
    }
  }
  function draw_cursor(pen, width, height) {
    if (state.cursor === null) return;
    pen.fillStyle = colour("ink");
    pen.fillRect(x_of(state.cursor, width), 0, 1, height);
  }
  function draw_ranks() {
    const height = data.ranks.length * lane + 22, [pen, width] = fit(ranks, height);
    const inks = {};
    ticks(pen, width, height, true);
    data.ranks.forEach((rank, n) => {
      const y = n * lane + 1, late = slow.includes(rank.rank);
      pen.textAlign = "right";
      pen.fillStyle = colour(late ? "bad" : "ink");
      pen.font = `${late ? "bold " : ""}12px system-ui, sans-serif`;
      pen.fillText((late ? "▸ " : "") + (width < 500 ? rank.rank : t("rank_name", rank)), left() - 6, y + lane / 2 + 4);
      for (const [from, to, part, detail] of rank.pieces) {
        if (to < state.from || from > state.to) continue;
        const name = part_colour(part, detail), x = Math.max(left(), x_of(from, width)), end = Math.min(width - 8, x_of(to, width));
        pen.fillStyle = inks[name] ??= colour(name);
        pen.fillRect(x, y, Math.max(0.4, end - x), lane - 3);
      }
      if (late) outline(pen, "bad", left() - 1, y - 1, width - 6 - left(), lane - 1);
    });
    for (const mark of data.marks) {
      if (mark.time_s < state.from || mark.time_s > state.to) continue;
      pen.fillStyle = colour("bad");
      pen.fillRect(x_of(mark.time_s, width) - 1, 0, 2, height - 18);
    }
    if (state.piece) {
      const [from, to] = state.piece, x = Math.max(left(), x_of(from, width)), end = Math.min(width - 8, x_of(to, width));
      outline(pen, "ink", x - 1, state.rank * lane, Math.max(3, end - x + 2), lane - 1);
    }
    draw_cursor(pen, width, height - 18);
  }
  function outline(pen, ink, ...box) {
    pen.strokeStyle = colour(ink);
    pen.lineWidth = 2;
    pen.strokeRect(...box);
  }
  function draw() {
    draw_ranks();
    plots.draw();
    range.textContent = t("from_to", { start: +state.from.toFixed(3), end: +state.to.toFixed(3) });
  }
  function show(from, to) {
    const span = Math.min(wall, Math.max(to - from, wall / 20000, 1e-4));
    state.from = Math.min(Math.max(0, from), wall - span);
    state.to = state.from + span;
    draw();
  }
  function zoom(factor, at = (state.from + state.to) / 2) {
    show(at - (at - state.from) * factor, at + (state.to - at) * factor);
  }
  function time_at(canvas, event) {
    const box = canvas.getBoundingClientRect();
    return state.from + ((event.clientX - box.left - left()) / (box.width - left() - 8)) * (state.to - state.from);
  }
  ranks.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey && !event.altKey) return; // plain scrolling scrolls the page
    event.preventDefault();
    zoom(event.deltaY > 0 || event.deltaX > 0 ? 1.25 : 0.8, time_at(ranks, event));
  }, { passive: false });
  const held = new Map();
  let gap = 0;
  ranks.addEventListener("pointerdown", (event) => { held.set(event.pointerId, event.clientX); ranks.setPointerCapture(event.pointerId); gap = 0; });
  ranks.addEventListener("pointermove", (event) => {
    if (!held.has(event.pointerId)) return hover(event);
    const width = ranks.clientWidth - left() - 8, before = held.get(event.pointerId);
    held.set(event.pointerId, event.clientX);
    if (held.size === 2) {
      const [a, b] = [...held.values()], now = Math.abs(a - b);
      if (gap) zoom(gap / Math.max(now, 1), time_at(ranks, { clientX: (a + b) / 2 }));
      gap = now;
      return;
    }
    const moved = ((event.clientX - before) / width) * (state.to - state.from);
    show(state.from - moved, state.to - moved);
  });
  for (const name of ["pointerup", "pointercancel"]) ranks.addEventListener(name, (event) => held.delete(event.pointerId));
  for (const name of ["pointerleave", "blur"]) ranks.addEventListener(name, () => { hide_tip(); state.piece = null; draw_ranks(); });
  ranks.addEventListener("dblclick", (event) => zoom(0.4, time_at(ranks, event)));
  function hover(event) {
    const box = ranks.getBoundingClientRect(), rank = data.ranks[Math.floor((event.clientY - box.top) / lane)], s = time_at(ranks, event);
    const piece = rank && rank.pieces.find(([from, to]) => from <= s && s < to);
    if (!piece) return hide_tip();
    show_tip(piece_text(rank, piece), event.clientX, event.clientY);
  }
  // To the piece before or after the chosen one, or to the one of another rank at the same moment; it is said.
  function walk(pieces_on, ranks_on) {
    const from = state.piece ? state.piece[0] : state.from;
    state.rank = Math.min(Math.max(0, state.rank + ranks_on), data.ranks.length - 1);
    const { pieces } = data.ranks[state.rank], at = Math.max(0, pieces.findIndex(([, to]) => to > from));
    state.piece = pieces[Math.min(Math.max(0, state.piece ? at + pieces_on : at), pieces.length - 1)];
    const [begin, end] = state.piece, span = state.to - state.from;
    if (begin >= state.to || end <= state.from) show(begin - span / 2, begin + span / 2);
    else draw_ranks();
    const box = ranks.getBoundingClientRect();
    show_tip(piece_text(data.ranks[state.rank], state.piece), box.left + Math.max(left(), x_of(begin, box.width)), box.top + (state.rank + 1) * lane);
  }
  ranks.addEventListener("keydown", (event) => {
    const span = state.to - state.from;
    const moves = {
      ArrowLeft: () => show(state.from - span / 5, state.to - span / 5), ArrowRight: () => show(state.from + span / 5, state.to + span / 5),
      ArrowUp: () => zoom(0.7), ArrowDown: () => zoom(1.4), "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1.4), Home: () => show(0, wall),
      ",": () => walk(-1, 0), ".": () => walk(1, 0), PageUp: () => walk(0, -1), PageDown: () => walk(0, 1),
    };
    if (moves[event.key] && !event.ctrlKey && !event.metaKey) { event.preventDefault(); moves[event.key](); }
  });
  const button = (key, act) => el("button", { type: "button", onclick: act }, t(key));
  const used = [...new Set(data.ranks.flatMap((r) => r.pieces.map((p) => part_colour(p[2], p[3]))))];
  const order = ["attention", "double", "single", "rest", ...PARTS].filter((name) => used.includes(name));
  const named = { rest: t("compute_other"), attention: t("attention"), double: t("double"), single: t("single") };
  const view = el("div", {},
    el("div", { class: "tools controls" }, button("zoom_in", () => zoom(0.6)), button("zoom_out", () => zoom(1.6)), button("zoom_all", () => show(0, wall)), range),
    el("figure", {}, ranks), legend(order.map((name) => [name, named[name] ?? t(name)])),
    slow.length ? el("p", { class: "soft" }, t("slow_marked", { ranks: slow })) : null,
    data.marks.length ? el("ul", {}, ...data.marks.map((m) => el("li", {}, say(m)))) : null,
    data.coarse_s ? el("p", { class: "soft" }, t("coarse", { bin_ms: 1000 * data.coarse_s })) : null, plots.view);
  return { view, draw };
}
// A piece in words: rank, step, part with axis and bytes, when and how long.
function piece_text(rank, [from, to, part, detail, axis, bytes]) {
  const step = (rank.steps ?? []).find((s) => s[0] <= from + 1e-4 && from < s[1] - 1e-5), middle = part === "waiting" && axis ? ` (${axis})` : "";
  const lines = [`${t("rank_name", rank)}: ${part_name(part, detail)}${middle}`, t("piece_time", { start_s: from.toFixed(3), ms: (1000 * (to - from)).toFixed(2) })];
  if (step) lines.push(t("piece_step", { step: step[2], rows: step[3] }));
  if (bytes) lines.push(t("piece_bytes", { bytes: scaled(bytes, "B") }));
  return lines.join("\n");
}
