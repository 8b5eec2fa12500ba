// Where the time goes as ranks are added: stacked phases per count, why the curve bends, and advice.
const STACKED = [...PARTS, "tail"];
function stacked_name(part) { return part === "tail" ? t("loss_tail") : t(part); }
function stacked_colour(part) { return part === "tail" ? "unused" : part; }
function stacked_chart(bars, mode) {
  const width = room(), thick = 26, gap = 10, left = 92, right = 72, height = bars.length * (thick + gap) + 4;
  const whole = (bar) => STACKED.reduce((sum, part) => sum + bar.parts[part], 0), most = Math.max(...bars.map(whole));
  const said = (bar, part) => `${size_of(bar.gpus)}, ${stacked_name(part)}: ${seconds(bar.parts[part])} s, ${percent(bar.parts[part] / whole(bar), 0)}`;
  const label = bars.map((bar) => STACKED.filter((part) => bar.parts[part] / whole(bar) >= 0.01).map((part) => said(bar, part)).join("; ")).join(". ");
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  bars.forEach((bar, n) => {
    const top = n * (thick + gap) + 2, scale = (width - left - right) / (mode === "seconds" ? most : whole(bar));
    let at = left;
    chart.append(svg("text", { x: left - 8, y: top + 18, "text-anchor": "end" }, size_of(bar.gpus)));
    for (const part of STACKED) {
      const long = bar.parts[part] * scale;
      if (long <= 0) continue;
      const piece = svg("rect", { x: at, y: top, width: long, height: thick, fill: `var(--${stacked_colour(part)})`, stroke: "var(--ground)", "stroke-width": long > 3 ? 1 : 0 });
      piece.append(svg("title", {}, said(bar, part)));
      chart.append(piece);
      at += long;
    }
    chart.append(svg("text", { x: at + 6, y: top + 18, class: "soft" }, `${seconds(whole(bar))} s`));
  });
  return chart;
}
function scaling_of(data) {
  if (!data.explained.length) return [];
  const parts = STACKED.filter((part) => data.explained.some((e) => e.bars.some((bar) => bar.parts[part] > 0)));
  const one = (e) => {
    const place = el("figure", {}), modes = ["seconds", "share"];
    const buttons = modes.map((mode) => el("button", { type: "button", "aria-pressed": mode === "seconds", onclick: () => show(mode) }, t("as_" + mode)));
    function show(mode) {
      buttons.forEach((b, n) => b.setAttribute("aria-pressed", String(modes[n] === mode)));
      place.replaceChildren(stacked_chart(e.bars, mode));
    }
    show("seconds");
    const advice = e.advice.map((a) => note("", say(a.what, "title"), el("b", {}, t("to_do") + ": "), say(a.do)));
    return el("div", {}, el("h3", {}, e.name), el("div", { class: "tools controls" }, ...buttons), place, ...advice);
  };
  return [section("where", t("where_title"), t("where_about"), legend(parts.map((part) => [stacked_colour(part), stacked_name(part)])), ...data.explained.map(one))];
}
function sweep_notes(data) {
  const busy = data.unknown.filter((line) => line.code === "machine_busy").map((line) => note("warn", say(line)));
  return [...busy, ...data.explained.map((e) => note(e.why.code === "bends" ? "warn" : "good", t("of_series", { name: e.name, why: e.why })))];
}
