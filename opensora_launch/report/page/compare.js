// The comparison of two runs or sweeps: what changed, which settings differ, and both timelines on one time axis.
function change_text(c) {
  const off = c.b - c.a, sign = off > 0 ? "+" : off < 0 ? "−" : "±";
  return c.a ? `${sign}${percent(Math.abs(off / c.a))}` : "–";
}
function compare_verdict(data) {
  const slower = data.changes.filter((c) => c.slower);
  const times = data.changes.filter((c) => c.gates), off = (c) => Math.abs(c.b / c.a - 1);
  const told = data.of === "run" ? times[0] : times.reduce((most, c) => (off(c) > off(most) ? c : most)); // of a sweep, the largest change
  const key = off(told) < 0.0005 ? "b_same" : told.b > told.a ? "b_longer" : "b_shorter";
  const said = t(key, { what: told.name, share: off(told), a_s: told.a, b_s: told.b });
  return note(slower.length ? "warn" : "good", said, t("b_slower", { slower: slower.length, gates: times.length }));
}
function deltas_of(data) {
  const mark = (c) => (c.slower ? t("slower") : c.beyond ? t("beyond_spread") : "");
  const value = (v, c) => `${c.unit === "s" ? seconds(v) : v.toFixed(2)} ${c.unit}`;
  const body = data.changes.map((c) => [say(c.name), value(c.a, c), value(c.b, c), change_text(c), c.a ? (c.b / c.a).toFixed(3) : "–", mark(c)]);
  return section("deltas", t("deltas"), null, table(t("deltas"), [t("what_of"), "A", "B", t("change"), "B / A", t("remark")], body, { words: [5], quiet: true }),
    data.notes.length ? el("ul", {}, ...data.notes.map((n) => el("li", {}, say(n)))) : null);
}
function settings_of(data) {
  const shown = (v) => (v === null || v === undefined || v === "" ? "–" : typeof v === "object" ? say(v) : String(v));
  const body = data.settings.map((s) => [s.key, shown(s.a), shown(s.b)]);
  return section("settings", t("settings"), t("settings_about"), body.length ? table(t("settings"), [t("name"), "A", "B"], body, { long: [1, 2], quiet: true }) : el("p", {}, t("none")),
    ...data.commands.flatMap((command, n) => (command ? [el("h3", {}, "AB"[n]), el("pre", {}, command)] : [])));
}
// Ids are unique on a page, also where it has two timelines.
function own_ids(view, side) {
  for (const e of view.querySelectorAll("#plots-about")) e.id += side;
  for (const e of view.querySelectorAll("[aria-describedby=plots-about]")) e.setAttribute("aria-describedby", `plots-about${side}`);
}
function timelines_of(data) {
  if (data.of !== "run") return null;
  const one = (drawn, n) => {
    const head = el("h3", {}, `${"AB"[n]}: ${data.names[n]}`);
    if (!drawn) return el("div", {}, head, el("p", { class: "soft" }, t("no_timeline", { path: data.paths[n] })));
    const made = timeline_view(drawn, [], () => false);
    views.push(made);
    own_ids(made.view, "AB"[n]);
    return el("div", {}, head, made.view);
  };
  return section("timeline", t("timelines"), t("timelines_about"), ...data.timelines.map(one));
}
function compare_page(data) {
  const who = el("dl", {}, ...data.names.flatMap((name, n) => [el("dt", {}, "AB"[n]), el("dd", {}, el("b", {}, name), ` (${data.paths[n]})`)]));
  return [[compare_verdict(data), who, deltas_of(data), curve_of(data.curve), settings_of(data), timelines_of(data)], t("lead_compare")];
}
