// What was measured during the run, on the axis of the timeline. A cursor that all plots share shows the values at a moment.
const FEW = 4; // so many lines are explained in the caption of their plot
const MANY = 6; // more lines than this are drawn thin; those of slow ranks are thick, and over the others
function plots_view(lines, axis, is_loud) {
  const groups = group_lines(lines, is_loud);
  const plots = groups.map((g) => ({ ...g, canvas: el("canvas", { // its arrow keys move the cursor
    tabindex: "0", role: "slider", "aria-label": describe_lines(g), "aria-describedby": "plots-about", "aria-valuemin": "0", "aria-valuemax": axis.wall.toFixed(3), "aria-valuenow": "0", "aria-valuetext": t("no_moment") }) }));
  for (const plot of plots) {
    const { canvas } = plot;
    canvas.addEventListener("pointermove", (event) => point(plot, axis.time_at(canvas, event), event));
    canvas.addEventListener("pointerleave", () => { hide_tip(); move(null); });
    canvas.addEventListener("blur", () => { hide_tip(); move(null); });
    canvas.addEventListener("keydown", (event) => {
      const span = axis.state.to - axis.state.from, at = axis.state.cursor ?? axis.state.from;
      const to = { ArrowLeft: at - span / 60, ArrowRight: at + span / 60, Home: axis.state.from, End: axis.state.to }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const box = canvas.getBoundingClientRect(), s = Math.min(Math.max(to, axis.state.from), axis.state.to);
      point(plot, s, { clientX: box.left + axis.x_of(s, box.width), clientY: box.top + box.height });
    });
  }
  function move(s) {
    axis.state.cursor = s;
    axis.draw();
  }
  function point(plot, s, place) {
    if (s < axis.state.from || s > axis.state.to) return hide_tip();
    move(s);
    const said = values_at(plot, s);
    plot.canvas.setAttribute("aria-valuenow", s.toFixed(3));
    plot.canvas.setAttribute("aria-valuetext", said.replaceAll("\n", ", "));
    show_tip(said, place.clientX, place.clientY);
  }
  function draw_plot(plot) {
    const height = 74, [pen, width] = axis.fit(plot.canvas, height), left = axis.left();
    const most = Math.max(1e-9, ...plot.lines.map((l) => l.most ?? 0), ...plot.lines.flatMap((l) => (l.most ? [] : l.points.map((p) => p[1]))));
    const y_of = (v) => height - 6 - (Math.min(v, most) / most) * (height - 14);
    axis.ticks(pen, width, height, false);
    pen.fillStyle = colour("soft");
    pen.textAlign = "right";
    pen.fillText(value_text(most, plot.lines[0].unit, true), left - 6, 14);
    pen.fillText("0", left - 6, height - 6);
    for (const line of [...plot.lines].sort((a, b) => a.loud - b.loud)) {
      pen.strokeStyle = colour(ink_of_line(line.place));
      pen.setLineDash(dash_of_line(line.place));
      pen.lineWidth = line.loud ? 3 : plot.lines.length > MANY ? 1.2 : 1.8;
      pen.beginPath();
      line.points.forEach(([s, v], k) => {
        const x = axis.x_of(s, width);
        if (x < left - 40 || x > width + 40) return;
        if (k === 0) pen.moveTo(Math.max(x, left), y_of(v));
        else pen.lineTo(Math.max(x, left), y_of(v));
      });
      pen.stroke();
    }
    pen.setLineDash([]);
    axis.draw_cursor(pen, width, height);
  }
  const view = el("div", {}, el("h3", {}, t("measured_lines")), el("p", { class: "soft", id: "plots-about" }, t(plots.length ? "plots_about" : "no_lines")),
    shared_key(groups), ...plots.map((p) => el("figure", {}, el("figcaption", {}, t(p.kind), unit_of(p), p.lines.length <= FEW ? line_keys(p.lines) : null), el("div", {}, p.canvas))));
  return { view, draw: () => plots.forEach(draw_plot) };
}
function values_at(plot, s) { // of the reading that is nearest to the moment
  const lines = plot.lines.map((l) => {
    const [, v] = l.points.reduce((a, b) => (Math.abs(b[0] - s) < Math.abs(a[0] - s) ? b : a));
    return `${say(l.name)}: ${value_text(v, l.unit)}`;
  });
  return [`${t(plot.kind)}, ${s.toFixed(2)} s`, ...lines].join("\n");
}
function group_lines(lines, is_loud) { // a GPU or a rank has one colour and dash in all plots, which no other has
  const name_of = (l) => JSON.stringify(l.name), names = [...new Set(lines.map(name_of))];
  for (const line of lines) {
    line.place = names.indexOf(name_of(line));
    line.loud = is_loud(line.name);
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
function unit_of(group) { return ["%", ""].includes(group.lines[0].unit) ? "" : ` (${group.lines[0].unit})`; }
function line_keys(lines) { return el("span", { class: "keys" }, ...lines.map((l) => line_key(l.place, say(l.name)))); }
function shared_key(groups) { // plots of many lines have one key, above them
  const named = new Map(groups.filter((g) => g.lines.length > FEW).flatMap((g) => g.lines).map((l) => [l.place, l]));
  return named.size ? el("p", {}, line_keys([...named.values()])) : null;
}
