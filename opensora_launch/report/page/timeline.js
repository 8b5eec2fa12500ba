// The timeline of ranks and, below it on the same axis, what was measured. They share zoom and position.
function timeline_view(data) {
  const wall = data.wall_s, state = { from: 0, to: wall };
  const ranks = el("canvas", { // it has its own keys, so it is not a picture to a screen reader
    tabindex: "0", role: "application", "aria-roledescription": t("timeline_role"), "aria-label": t("timeline_aria", { ranks: data.ranks.length, wall_s: wall }),
    "aria-describedby": "timeline-about", "aria-keyshortcuts": "ArrowLeft ArrowRight ArrowUp ArrowDown + - Home",
  });
  const groups = group_lines(data.lines);
  const plots = groups.map((g) => ({ ...g, canvas: el("canvas", { role: "img", "aria-label": describe_lines(g) }) }));
  const range = el("span", { class: "soft", "aria-live": "polite" });
  const lane = data.ranks.length > 16 ? 14 : 24;
  const left = () => (innerWidth < 560 ? 40 : 64);

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
  const x_of = (s, width) => left() + ((s - state.from) / (state.to - state.from)) * (width - left() - 8);
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
  function draw_ranks() {
    const height = data.ranks.length * lane + 22, [pen, width] = fit(ranks, height);
    const inks = {};
    ticks(pen, width, height, true);
    data.ranks.forEach((rank, n) => {
      const y = n * lane + 1;
      pen.textAlign = "right";
      pen.fillStyle = colour("ink");
      pen.fillText(width < 500 ? rank.rank : t("rank_name", rank), left() - 6, y + lane / 2 + 4);
      for (const [from, to, part, detail] of rank.pieces) {
        if (to < state.from || from > state.to) continue;
        const name = part_colour(part, detail), x = Math.max(left(), x_of(from, width)), end = Math.min(width - 8, x_of(to, width));
        pen.fillStyle = inks[name] ??= colour(name);
        pen.fillRect(x, y, Math.max(0.4, end - x), lane - 3);
      }
    });
    for (const mark of data.marks) {
      if (mark.time_s < state.from || mark.time_s > state.to) continue;
      pen.fillStyle = colour("bad");
      pen.fillRect(x_of(mark.time_s, width) - 1, 0, 2, height - 18);
    }
  }
  function draw_plot(plot) {
    const height = 74, [pen, width] = fit(plot.canvas, height);
    const most = Math.max(1e-9, ...plot.lines.map((l) => l.most ?? 0), ...plot.lines.flatMap((l) => (l.most ? [] : l.points.map((p) => p[1]))));
    const y_of = (v) => height - 6 - (Math.min(v, most) / most) * (height - 14);
    ticks(pen, width, height, false);
    pen.fillStyle = colour("soft");
    pen.textAlign = "right";
    pen.fillText(value_text(most, plot.lines[0].unit, true), left() - 6, 14);
    pen.fillText("0", left() - 6, height - 6);
    plot.lines.forEach((line) => {
      pen.strokeStyle = colour(line.ink);
      pen.lineWidth = 1.6;
      pen.beginPath();
      line.points.forEach(([s, v], k) => {
        const x = x_of(s, width);
        if (x < left() - 40 || x > width + 40) return;
        if (k === 0) pen.moveTo(Math.max(x, left()), y_of(v));
        else pen.lineTo(Math.max(x, left()), y_of(v));
      });
      pen.stroke();
    });
  }
  function draw() {
    draw_ranks();
    plots.forEach(draw_plot);
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
  function time_at(event) {
    const box = ranks.getBoundingClientRect();
    return state.from + ((event.clientX - box.left - left()) / (box.width - left() - 8)) * (state.to - state.from);
  }
  ranks.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey && !event.altKey) return; // plain scrolling scrolls the page
    event.preventDefault();
    zoom(event.deltaY > 0 || event.deltaX > 0 ? 1.25 : 0.8, time_at(event));
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
      if (gap) zoom(gap / Math.max(now, 1), time_at({ clientX: (a + b) / 2 }));
      gap = now;
      return;
    }
    const moved = ((event.clientX - before) / width) * (state.to - state.from);
    show(state.from - moved, state.to - moved);
  });
  for (const name of ["pointerup", "pointercancel"]) ranks.addEventListener(name, (event) => held.delete(event.pointerId));
  ranks.addEventListener("pointerleave", hide_tip);
  ranks.addEventListener("dblclick", (event) => zoom(0.4, time_at(event)));
  function hover(event) {
    const box = ranks.getBoundingClientRect(), rank = data.ranks[Math.floor((event.clientY - box.top) / lane)], s = time_at(event);
    const piece = rank && rank.pieces.find(([from, to]) => from <= s && s < to);
    if (!piece) return hide_tip();
    show_tip(`${t("rank_name", rank)}: ${part_name(piece[2], piece[3])}, ${(1000 * (piece[1] - piece[0])).toFixed(2)} ms`, event.clientX, event.clientY);
  }
  ranks.addEventListener("keydown", (event) => {
    const span = state.to - state.from;
    const moves = {
      ArrowLeft: () => show(state.from - span / 5, state.to - span / 5), ArrowRight: () => show(state.from + span / 5, state.to + span / 5),
      ArrowUp: () => zoom(0.7), ArrowDown: () => zoom(1.4), "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1.4), Home: () => show(0, wall),
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
    data.marks.length ? el("ul", {}, ...data.marks.map((m) => el("li", {}, say(m)))) : null,
    data.coarse_s ? el("p", { class: "soft" }, t("coarse", { bin_ms: 1000 * data.coarse_s })) : null,
    el("h3", {}, t("measured_lines")),
    plots.length ? null : el("p", { class: "soft" }, t("no_lines")),
    ...plots.map((p) => el("figure", {}, el("figcaption", {}, t(p.kind), " ", line_keys(p)), el("div", {}, p.canvas))));
  return { view, draw };
}
function group_lines(lines) { // a GPU or a rank has one colour in all plots
  const inks = ["accent", "communication", "vae", "load", "waiting", "save", "text", "setup"], name_of = (l) => JSON.stringify(l.name);
  for (const line of lines) {
    const names = [...new Set(lines.filter((l) => l.name.code === line.name.code).map(name_of))];
    line.ink = inks[names.indexOf(name_of(line)) % inks.length];
  }
  const kinds = [...new Set(lines.map((l) => l.kind))];
  return kinds.map((kind) => ({ kind, lines: lines.filter((l) => l.kind === kind) }));
}
function value_text(v, unit, short) {
  if (unit === "%") return percent(v, 0);
  if (unit === "") return v.toFixed(0);
  return short ? `${v >= 10 ? v.toFixed(0) : v.toFixed(1)}` : `${v >= 10 ? v.toFixed(0) : v.toFixed(2)} ${unit}`;
}
function describe_lines(group) {
  const lines = group.lines.map((l) => {
    const values = l.points.map((p) => p[1]), mean = values.reduce((a, v) => a + v, 0) / values.length;
    return `${say(l.name)}: ${value_text(mean, l.unit)} (${value_text(Math.min(...values), l.unit)} – ${value_text(Math.max(...values), l.unit)})`;
  });
  return `${t(group.kind)}. ${lines.join("; ")}`;
}
function line_keys(group) {
  const unit = ["%", ""].includes(group.lines[0].unit) ? "" : ` (${group.lines[0].unit})`;
  return el("span", {}, unit, ...group.lines.map((l) => el("span", { style: `color:var(--${l.ink});margin-left:10px;white-space:nowrap` }, "━ " + say(l.name))));
}
