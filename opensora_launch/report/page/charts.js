// The scaling curve, the waterfall and bars, as SVG.
function room() { return Math.max(280, document.getElementById("main").clientWidth); }
function curve_chart(lines, mode) {
  const width = room(), narrow = width < 620, height = narrow ? 300 : 360, left = 46, right = narrow ? 14 : 230, top = 12, bottom = 40;
  const counts = [...new Set(lines.flatMap((l) => l.points.map((p) => p.gpus)))].sort((a, b) => a - b);
  const most = Math.max(2, ...counts), least = Math.min(1, ...counts);
  const x = (n) => left + (Math.log2(n / least) / Math.log2(most / least)) * (width - left - right);
  const tops = lines.flatMap((l) => l.points.map((p) => (p.high ?? p)[mode]));
  const high = mode === "speedup" ? Math.max(most, ...tops) : Math.max(1.05, ...tops);
  const low = 0.85 * Math.min(least, ...lines.flatMap((l) => l.points.map((p) => (p.low ?? p).speedup)));
  const y = mode === "speedup"
    ? (v) => height - bottom - (Math.log2(v / low) / Math.log2(high / low)) * (height - top - bottom)
    : (v) => height - bottom - (v / high) * (height - top - bottom);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": t("curve_aria") });
  const ticks = mode === "speedup" ? counts : [0, 0.25, 0.5, 0.75, 1];
  for (const v of ticks) {
    chart.append(svg("line", { x1: left, x2: width - right, y1: y(v), y2: y(v), stroke: "var(--line)" }));
    chart.append(svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end", class: "soft" }, mode === "speedup" ? `${v}×` : percent(v, 0)));
  }
  for (const n of counts) chart.append(svg("text", { x: x(n), y: height - bottom + 18, "text-anchor": "middle", class: "soft" }, n));
  chart.append(svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle", class: "soft" }, t(unit === "GPU" ? "gpu_count" : "gpu_or_rank_count")));
  const ideal = mode === "speedup" ? `M${x(least)} ${y(least)}L${x(most)} ${y(most)}` : `M${x(least)} ${y(1)}L${x(most)} ${y(1)}`;
  chart.append(svg("path", { d: ideal, stroke: "var(--soft)", "stroke-dasharray": "2 4", fill: "none", "stroke-width": 1.5 }));
  const dashes = ["", "7 3", "2 3", "9 3 2 3", "4 4", "1 3"];
  const ends = [];
  lines.forEach((line, n) => {
    const own = line.kind !== "published", ink = `var(--${ink_of_line(n)})`, points = line.points;
    const at = (p) => [x(p.gpus), y(mode === "speedup" ? p.speedup : p.efficiency)];
    chart.append(svg("path", { d: points.map((p, k) => (k ? "L" : "M") + at(p).join(" ")).join(""), stroke: ink, fill: "none", "stroke-width": own ? 3 : 1.6, "stroke-dasharray": own ? "" : dashes[n % dashes.length] }));
    for (const p of points) {
      const [cx, cy] = at(p);
      if (p.low) { // the slowest and the fastest repeat
        const [low, high] = [y(p.low[mode]), y(p.high[mode])];
        for (const [x1, x2, y1, y2] of [[cx, cx, low, high], [cx - 5, cx + 5, low, low], [cx - 5, cx + 5, high, high]]) {
          chart.append(svg("line", { x1, x2, y1, y2, stroke: ink, "stroke-width": 1.6, class: "spread" }));
        }
      }
      const dot = svg("circle", { cx, cy, r: own ? 5 : 3.2, fill: p.kind === "predicted" ? "var(--ground)" : ink, stroke: ink, "stroke-width": 2 });
      dot.append(svg("title", {}, `${line.name}: ${size_of(p.gpus, own ? unit : "GPU")}, ${seconds(p.seconds)} s, ${p.speedup.toFixed(2)}×, ${percent(p.efficiency)}` + (p.low ? ` (${percent(p.low.efficiency)} – ${percent(p.high.efficiency)})` : "")));
      chart.append(dot);
    }
    if (points.length) ends.push({ name: line.name, ink, y: at(points[points.length - 1])[1], own });
  });
  if (!narrow) {
    ends.sort((a, b) => a.y - b.y).forEach((e, k) => { if (k && e.y - ends[k - 1].y < 15) e.y = ends[k - 1].y + 15; });
    for (const e of ends) {
      chart.append(svg("line", { x1: width - right + 12, x2: width - right + 26, y1: e.y, y2: e.y, stroke: e.ink, "stroke-width": 3 }));
      chart.append(svg("text", { x: width - right + 31, y: e.y + 4, style: e.own ? "font-weight:600" : "" }, e.name));
    }
  }
  const inked = lines.map((line, n) => [ink_of_line(n), line.name]);
  return el("div", {}, chart, narrow ? legend(inked) : null);
}
function waterfall_chart(steps) {
  const width = room(), narrow = width < 620, bar = 30, left = narrow ? 4 : 330, right = 64, lift = narrow ? 16 : 0, height = steps.length * (bar + lift) + 8;
  const x = (v) => left + Math.max(0, v) * (width - left - right);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": steps.map((s) => `${s.name} ${percent(s.share)}`).join(", ") });
  steps.forEach((s, n) => {
    const top = n * (bar + lift) + 4 + lift, from = Math.min(s.from, s.to), to = Math.max(s.from, s.to);
    chart.append(svg("text", narrow ? { x: left, y: top - 3 } : { x: left - 10, y: top + 17, "text-anchor": "end" }, s.name));
    chart.append(svg("rect", { x: x(0), y: top, width: x(1) - x(0), height: bar - 8, fill: "var(--panel)" }));
    chart.append(svg("rect", { x: x(from), y: top, width: Math.max(1, x(to) - x(from)), height: bar - 8, fill: `var(--${s.ink})`, rx: 2 }));
    chart.append(svg("text", { x: x(to) + 6, y: top + 16, class: s.total ? "" : "soft" }, (s.total ? "" : s.to > s.from ? "+" : "−") + percent(Math.abs(s.share))));
  });
  return chart;
}
// Losses of an attempt as shares of ranks x wall time; with what is left they add up to 1.
function losses(ranks, wall_s) {
  const total = ranks.length * wall_s, sum = (part) => ranks.reduce((a, r) => a + r.parts[part], 0);
  const repeated = ["setup", "load", "other"].reduce((a, part) => a + sum(part) - Math.max(...ranks.map((r) => r.parts[part])), 0);
  const tail = total - ranks.reduce((a, r) => a + r.wall_s, 0);
  return [["communication", sum("communication")], ["waiting", sum("waiting")], ["idle", sum("idle")], ["serial", repeated], ["tail", tail]]
    .map(([name, s]) => ({ name, share: s / total }));
}
// Against a predicted baseline nothing else is lost: it consists of what is left here.
function waterfall_steps(ranks, wall_s, scaling) {
  const inks = { communication: "communication", waiting: "waiting", idle: "idle", serial: "serial", tail: "tail" };
  const steps = [{ name: t("ideal_all"), from: 0, to: 1, share: 1, ink: "soft", total: true }];
  let at = 1;
  for (const { name, share } of losses(ranks, wall_s)) {
    if (share >= 0.0005) steps.push({ name: t("loss_" + name), from: at, to: at - share, share, ink: inks[name] });
    at -= share;
  }
  if (scaling && Math.abs(at - scaling.efficiency) > 0.0005) {
    const rest = at - scaling.efficiency;
    steps.push({ name: t(rest > 0 ? "loss_rest" : "gain_rest"), from: at, to: scaling.efficiency, share: Math.abs(rest), ink: rest > 0 ? "bad" : "good" });
    at = scaling.efficiency;
  }
  steps.push({ name: t("left"), from: 0, to: at, share: at, ink: "accent", total: true });
  return steps;
}
// The user's wait as one bar, each part with its seconds below it.
function wait_bar(wait) {
  const parts = Object.entries(wait.parts).filter(([, s]) => s >= 0.0005 * wait.total_s);
  const ink = (part) => (part === "denoise" ? "compute" : part), said = (s) => `${seconds(s)} s` + (s >= 0.005 * wait.total_s ? `, ${percent(s / wait.total_s, 0)}` : "");
  const label = parts.map(([part, s]) => `${t("wait_" + part)} ${said(s)}`).join("; ");
  return el("figure", {},
    el("div", { class: "stack", role: "img", "aria-label": label }, ...parts.map(([part, s]) => el("i", { style: `flex:${s} 0 0;background:var(--${ink(part)})` }))),
    legend(parts.map(([part, s]) => [ink(part), `${t("wait_" + part)} ${said(s)}`])));
}
function meter(share) {
  return share === null || share === undefined ? "" : el("span", { class: "meter", "aria-hidden": "true" }, el("i", { style: `width:${Math.min(100, 100 * share)}%` }));
}
