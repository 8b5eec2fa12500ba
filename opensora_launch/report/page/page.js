// The page of a run or of a sweep, in the chosen language. DATA is what build.py embeds.
const DATA = JSON.parse(document.getElementById("data").textContent);
let views = [];
function tile(value, ...lines) { return el("div", { class: "tile" }, el("b", {}, value), ...lines.map((line) => el("span", {}, line))); }
function note(kind, title, ...body) { return el("div", { class: `note ${kind}` }, el("strong", {}, title), ...body); }
function last_attempt(r) { return r.attempts[r.attempts.length - 1]; }

function tiles_of(r) {
  const a = last_attempt(r), made = [], e = r.efficiency;
  if (e) {
    const base = t("against", { seconds: e.job.t_base_s, size: size_of(e.job.gpus_base), kind: t(e.baseline.kind) });
    made.push(tile(percent(e.job.efficiency), t("efficiency_job"), base), tile(`${e.job.speedup.toFixed(2)}×`, t("speedup"), size_of(e.job.gpus)));
    made.push(tile(percent(e.denoise.efficiency), t("efficiency_denoise")));
  }
  if (r.wait) made.push(tile(`${seconds(r.wait.total_s)} s`, t("wait_title")));
  if (a && a.wall_s) {
    made.push(tile(`${seconds(a.wall_s)} s`, t("wall")));
    const total = a.ranks.reduce((s, k) => s + k.wall_s, 0), compute = a.ranks.reduce((s, k) => s + k.parts.compute, 0);
    made.push(tile(percent(compute / total, 0), t("computing")));
  }
  if (r.rates) made.push(r.rates.mfu !== null ? tile(percent(r.rates.mfu), t("mfu"), scaled(r.rates.flops_per_s, "FLOP/s")) : tile(scaled(r.rates.flops_per_s, "FLOP/s"), t("flops"), say(r.rates.mfu_reason)));
  if (r.energy && r.energy.kwh !== null) made.push(tile(`${amount(r.energy.kwh)} kWh`, t("energy"), r.energy.joules_per_video === null ? "" : t("per_video", { value: scaled(r.energy.joules_per_video, "J") })));
  if (r.cost) made.push(cost_tile(r));
  return el("div", { class: "tiles" }, ...made);
}
function amount(value) { return value.toFixed(value >= 1 ? 2 : 4); }
function cost_tile(r) {
  const hours = `${amount(r.cost.gpu_hours)} ${t(unit === "GPU" ? "gpu_hours_of" : "cpu_rank_hours_of")}`, each = r.cost.usd_per_video;
  if (r.cost.usd === null) return tile(amount(r.cost.gpu_hours), t(unit === "GPU" ? "gpu_hours_of" : "cpu_rank_hours_of"));
  return tile(`$${amount(r.cost.usd)}`, t("cost"), hours, each === null ? "" : t("per_video", { value: `$${amount(each)}` }));
}
function baseline_of(e) {
  return el("p", { class: "soft", id: "baseline" }, t("baseline", { kind: t(e.baseline.kind), how: e.baseline.how }));
}
function verdict_of(r) {
  const kinds = { verdict_none: "good", verdict_unknown: "", run_failed: "bad" };
  return note(kinds[r.verdict.code] ?? "warn", say(r.verdict));
}
function wait_of(r) {
  if (!r.wait) return null;
  return section("wait", t("wait_title"), t("end" in r.wait.parts ? "wait_about" : "wait_cut", r.wait), wait_bar(r.wait));
}
function findings_of(r) {
  const found = r.attempts.flatMap((a) => a.findings);
  const notes = found.map((f) => note(f.code === "gpu_error" ? "bad" : "warn", say(f, "title"), say(f)));
  return section("found", t("found"), null, ...(notes.length ? notes : [el("p", {}, t("found_none"))]));
}
function advice_of(r) {
  const notes = r.advice.map((a) => note("", t("gain", a), say(a.what, "title"), el("br"), el("b", {}, t("to_do") + ": "), say(a.do)));
  return section("advice", t("advice"), notes.length ? t("how_advice") : null, ...(notes.length ? notes : [el("p", {}, r.prediction ? t("advice_none") : t("advice_unknown", { why: r.prediction_reason }))]));
}
function curve_of(curve) {
  if (!curve || !curve.length) return null;
  const names = curve.map((l) => ({ ...l, name: l.own ? t("this_run") + (l.name ? ` ${l.name}` : "") : l.name }));
  const place = el("figure", {});
  const modes = ["speedup", "efficiency"].map((mode) => el("button", { type: "button", "aria-pressed": mode === "speedup", onclick: () => show(mode) }, t("as_" + mode)));
  function show(mode) {
    modes.forEach((b, n) => b.setAttribute("aria-pressed", String((n === 0) === (mode === "speedup"))));
    place.replaceChildren(curve_chart(names, mode));
  }
  show("speedup");
  const numbers = (which) => {
    const body = names.filter(which).flatMap((l) => l.points.map((p) => [l.name, t(p.kind ?? l.kind), size_of(p.gpus, l.kind === "published" ? "GPU" : unit), seconds(p.seconds), `${p.speedup.toFixed(2)}×`, percent(p.efficiency)]));
    return body.length ? table(t("curve"), [t("name"), t("kind"), t("size_of"), t("seconds"), t("speedup"), t("efficiency")], body, { words: [0, 1], quiet: true }) : null;
  };
  const own = numbers((l) => l.kind !== "published"), theirs = numbers((l) => l.kind === "published");
  const notes = curve.filter((l) => l.note).map((l) => el("p", { class: "soft" }, l.name, ": ", say(l.note)));
  const spread = names.some((l) => l.points.some((p) => p.low)) ? el("p", { class: "soft" }, t("spread_about")) : null;
  return section("curve", t("curve"), t("curve_about"), el("div", { class: "tools controls" }, ...modes), place, spread, own,
    own && theirs ? el("details", {}, el("summary", {}, t("published_figures")), theirs, ...notes) : theirs, ...(own && theirs ? [] : notes));
}
function waterfall_of(r) {
  const a = last_attempt(r);
  if (!a || !a.ranks.length) return null;
  const e = r.efficiency, steps = waterfall_steps(a.ranks, a.wall_s, e && e.job);
  const serial = r.serial_share && r.serial_share.job !== null && r.serial_share.job > 0.001 && r.serial_share.job < 1 ? el("p", {}, t("serial_about", { share: r.serial_share.job, limit: 1 / r.serial_share.job })) : null;
  const uneven = r.imbalance && r.imbalance.compute !== null ? el("p", {}, t("imbalance_about", { share: r.imbalance.compute })) : null;
  return section("waterfall", t("waterfall"), t("waterfall_about"), el("figure", {}, waterfall_chart(steps)), serial, uneven);
}
function slow_ranks(r) { // one line among many is pointed out
  const a = last_attempt(r);
  return a ? [...new Set(a.findings.filter((f) => f.code === "slow_rank").flatMap((f) => f.ranks))] : [];
}
function timeline_of(data, slow, gpus) {
  if (!data) return null;
  const theirs = (name) => gpus.some((g) => g.index === name.index && (name.host ?? g.host) === g.host && g.ranks.some((k) => slow.includes(k)));
  const made = timeline_view(data, slow, (name) => (name.code === "rank_name" ? slow.includes(name.rank) : name.code === "gpu_name" && theirs(name)));
  views.push(made);
  return section("timeline", t("timeline"), t("timeline_about"), made.view);
}
function gpus_of(a) {
  if (!a || (!a.gpus.length && !a.hosts.length)) return null;
  const name = (g) => (a.hosts.length > 1 ? `${g.index} ${g.name}, ${g.host}` : `${g.index} ${g.name}`);
  const body = a.gpus.map((g) => [name(g), g.ranks.join(", "), el("span", {}, gib(g.memory_peak_bytes), g.memory_bytes ? ` / ${gib(g.memory_bytes)}` : "", meter(g.memory_peak_bytes && g.memory_bytes ? g.memory_peak_bytes / g.memory_bytes : null)),
    el("span", {}, g.power_mean_w === null ? "–" : `${g.power_mean_w.toFixed(0)} W`, meter(g.power_mean_w && g.power_limit_w ? g.power_mean_w / g.power_limit_w : null)), percent(g.util_mean, 0),
    g.sm_mhz_median === null ? "–" : `${g.sm_mhz_median.toFixed(0)} MHz`, celsius(g.temperature_max_c), scaled(g.energy_j, "J")]);
  const two = (x, y, of) => (x === null && y === null ? "–" : `${scaled(x, of)} / ${scaled(y, of)}`);
  const throttles = (g) => Object.entries(g.throttled).map(([why, share]) => `${t(why)} ${percent(share, 0)}`).join(", ");
  const health = a.gpus.map((g) => [name(g), two(g.nvlink_tx_bytes, g.nvlink_rx_bytes, "B"), two(g.pcie_tx_bytes_per_s, g.pcie_rx_bytes_per_s, "B/s"),
    g.ecc_corrected === null && g.ecc_uncorrected === null ? "–" : `${g.ecc_corrected ?? "–"} / ${g.ecc_uncorrected ?? "–"}`, g.xids.join(", ") || t("none"),
    g.others_share === null ? "–" : percent(g.others_share, 0), throttles(g) || t("none")]);
  const notes = a.hosts.filter((h) => h.no_gpus).map((h) => t("no_gpus", { host: h.host, why: h.no_gpus }));
  const hosts = a.hosts.map((h) => [h.host, percent(h.cpu_share, 0), gib(h.memory_bytes), gib(h.least_available_bytes), seconds(h.memory_stall_s)]);
  const ranks = a.ranks.map((k) => [k.rank, el("span", {}, gib(k.peak_memory_bytes), meter(k.peak_memory_bytes / Math.max(...a.ranks.map((o) => o.peak_memory_bytes ?? 0))))]);
  return section("gpus", t("gpus_title"), null,
    body.length ? table(t("gpus_title"), [t("gpu"), t("rank"), t("peak_memory"), t("power"), t("use"), t("clock"), t("temperature"), t("energy_j")], body, { quiet: true }) : table(t("peak_memory"), [t("rank"), t("peak_memory")], ranks),
    health.length ? table(t("health_title"), [t("gpu"), t("nvlink"), t("pcie"), t("ecc"), "XID", t("others"), t("throttles")], health, { words: [4], long: [6] }) : null,
    table(t("hosts"), [t("host"), t("cpu_share"), t("host_memory"), t("least_free"), t("stalled")], hosts), ...notes.map((n) => el("p", { class: "soft" }, n)));
}
function ranks_of(a, slow) {
  if (!a || !a.ranks.length) return null;
  const parts = PARTS.filter((p) => a.ranks.some((r) => r.parts[p] > 0));
  const body = a.ranks.map((r) => [`${r.rank}${r.complete ? "" : ` (${t("cut")})`}`, r.host, seconds(r.wall_s),
    ...parts.map((p) => el("span", {}, seconds(r.parts[p]), " ", el("small", {}, percent(r.parts[p] / r.wall_s, 0)))), gib(r.peak_memory_bytes)]), marked = a.ranks.flatMap((r, n) => (slow.includes(r.rank) ? [n] : []));
  const kinds = KINDS.filter((k) => a.ranks.some((r) => r.compute_by_kind[k] > 0));
  const total = (k) => a.ranks.reduce((s, r) => s + (r.compute_by_kind[k] ?? 0), 0), whole = KINDS.reduce((s, k) => s + total(k), 0);
  const waits = a.waited_for.map((w) => [w.rank, w.host, seconds(w.seconds), Object.keys(w.by).join(", "),
    Object.entries(w.while_in).filter(([, s]) => s >= 0.02 * w.seconds).map(([k, s]) => `${t(k)} ${seconds(s)} s`).join(", ")]);
  const steps = a.steps.map((s) => [s.rows, s.layout, s.count, s.median_s.toFixed(3), `${s.min_s.toFixed(3)} – ${s.max_s.toFixed(3)}`]);
  return section("ranks", t("ranks_title"), null,
    table(t("ranks_caption"), [t("rank"), t("host"), t("wall_s"), ...parts.map((p) => t(p)), t("peak_memory")], body, { words: [1], marked }),
    kinds.length ? table(t("compute_title"), [t("kind"), t("seconds"), t("share")], kinds.map((k) => [k === "other" ? t("compute_other") : t(k), seconds(total(k)), percent(total(k) / whole)])) : null,
    waits.length ? table(t("waits_title"), [t("rank"), t("host"), t("waited"), t("by"), t("meanwhile")], waits, { words: [1, 3], long: [4] }) : null,
    steps.length ? table(t("steps_title"), [t("rows"), t("layout"), t("count"), t("median"), t("range")], steps, { words: [1] }) : null);
}
function links_of(r) {
  if (!r.links.length) return null;
  const body = r.links.map((l) => [l.axis, scaled(l.bytes, "B"), seconds(l.seconds), scaled(l.bytes_per_s, "B/s"), l.share === null ? (l.reason ? say(l.reason) : "–") : percent(l.share)]);
  return section("links", t("axes_title"), null, table(t("axes_title"), [t("axis"), t("sent"), t("seconds"), t("rate"), t("share_link")], body, { words: [4], quiet: true }));
}
function prediction_of(r) {
  const p = r.prediction;
  if (!p) return section("prediction", t("prediction"), null, el("p", { class: "soft" }, t("prediction_none"), " ", say(r.prediction_reason)));
  const body = p.map((x) => [t("phase_" + x.what), `${seconds(x.predicted_s)} s`, `${seconds(x.measured_s)} s`, x.predicted_s ? `${x.measured_s >= x.predicted_s ? "+" : "−"}${percent(Math.abs(x.measured_s / x.predicted_s - 1))}` : "–"]);
  return section("prediction", t("prediction"), null, table(t("prediction"), [t("what"), t("predicted"), t("measured"), t("difference_of")], body, { quiet: true }));
}
function environment_of(r) {
  const m = r.machine, w = r.work, env = r.environment, a = last_attempt(r), facts = [
    [t("made_by"), r.version], [t("devices"), `${m.ranks} × ${m.device_names.join(", ") || m.device}`], [t("hosts"), m.hosts.join(", ")],
    [t("model"), w["model.name"]], [t("size"), t("size_px", w)],
    [t("work"), t("work_steps", w)], [t("precision"), w.precision], [t("attention_kernel"), w.attention],
    [t("layout"), Object.entries(r.layouts).map(([n, l]) => `${n}: ${l}`).join("; ")], [t("engine"), r.engine], [t("threads"), m.device === "cpu" ? m.threads_per_rank : ""],
    [t("clock_error"), a && m.hosts.length > 1 && a.clock_error_s !== null ? `${(1000 * a.clock_error_s).toFixed(3)} ms` : ""],
    [t("placement_of"), a ? say(a.placement) : ""],
    ...Object.entries(env.versions).map(([name, version]) => [name, version]),
    [t("driver"), env.drivers.join(", ")], [t("env_profile"), env.profile],
  ].filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const failures = r.attempts.filter((x) => x.failure).map((x) => note("bad", t(x.failure.rank < 0 ? "ranks_failed_on" : "failed_on", x.failure), el("span", { lang: "en" }, x.failure.message)));
  return section("environment", t("environment"), null, ...failures, el("dl", {}, ...facts.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)])), variables_of(env),
    r.command ? el("h3", {}, t("repeat")) : null, r.command ? el("pre", {}, r.command) : null,
    a && a.command ? el("p", { class: "soft" }, t("started_by")) : null, a && a.command ? el("pre", {}, a.command) : null);
}
// The variables that matter, as the ranks saw them, and what the profile did to them.
function variables_of(env) {
  const how = (name) => (name in env.set ? t("var_set") : name in env.kept ? t("var_kept") : "");
  const body = Object.entries(env.variables).map(([name, value]) => [name, value, how(name)]);
  body.push(...Object.entries(env.taken_away).map(([name, value]) => [name, value, t("var_taken")]));
  if (!body.length) return null;
  return el("details", {}, el("summary", {}, t("variables", { count: body.length })), table(t("variables", { count: body.length }), [t("var_name"), t("var_value"), t("var_how")], body, { words: [2], long: [1], quiet: true }));
}
function files_of(data) { // beside the page
  const names = ["report.json", "report.md", "ranks.csv", "metrics.prom", ...(data.timeline ? ["trace.json"] : [])];
  return section("files", t("files"), null, el("ul", {}, ...names.map((name) => el("li", {}, el("a", { href: name }, name), ": ", t("file_" + name.replace(".", "_"))))));
}
function contents_of() {
  const heads = [...document.querySelectorAll("main h2")];
  return heads.map((h) => el("li", {}, el("a", { href: `#${h.parentElement.id}` }, h.textContent)));
}
function unknown_of(r) {
  const lines = [...r.unknown, ...r.attempts.flatMap((a) => a.unknown)];
  return lines.length ? section("unknown", t("unknown"), null, el("ul", {}, ...lines.map((l) => el("li", {}, say(l))))) : null;
}
function run_page(data) {
  const r = data.report, e = r.efficiency;
  const shown = [r.approximate.length ? note("warn", t("approximate", { settings: r.approximate })) : null, verdict_of(r), tiles_of(r), e ? baseline_of(e) : null, e && e.fault ? note("bad", t("fault"), say(e.fault)) : null,
    e ? null : note("", t("no_efficiency"), say(r.efficiency_reason)), samples_of(r), previews_of(r), wait_of(r), findings_of(r), advice_of(r), curve_of(data.curve), waterfall_of(r), timeline_of(data.timeline, slow_ranks(r), last_attempt(r)?.gpus),
    gpus_of(last_attempt(r)), ranks_of(last_attempt(r), slow_ranks(r)), links_of(r), prediction_of(r), environment_of(r), files_of(data), unknown_of(r)];
  return [shown, t(r.work.num_frames > 1 ? "lead_run" : "lead_images", { status: t("status_" + r.status), size: size_of(r.machine.ranks), device: r.machine.device_names.join(", ") || r.machine.device, ...r.videos })];
}
function sweep_page(data) {
  const amdahl = data.amdahl.map((a) => el("p", {}, el("b", {}, a.name + ": "), t(a.parallel_s ? "amdahl_about" : "amdahl_none", a)));
  const body = data.table.map((x) => [x.name, x.gpus, x.layout ?? "–", seconds(x.seconds), x.low === null ? "–" : `${seconds(x.low)} – ${seconds(x.high)} (${x.repeats})`, x.speedup === null ? "–" : `${x.speedup.toFixed(2)}×`, x.efficiency !== null ? percent(x.efficiency) : x.other_work.length ? t("no_value_other_work") : "–", x.karp_flatt === null ? "–" : x.karp_flatt > 1 ? t("no_speedup") : percent(x.karp_flatt), x.href ? el("a", { href: x.href }, x.source) : x.source]);
  const baselines = data.baselines.map((b) => el("li", {}, t("sweep_baseline_" + b.kind, { ...b, size: size_of(b.gpus) })));
  const shown = [...sweep_notes(data), curve_of(data.curve), ...scaling_of(data), amdahl.length ? section("serial", t("serial"), null, ...amdahl) : null,
    section("runs", t("runs_title"), null, table(t("runs_title"), [t("name"), t(unit === "GPU" ? "gpu_count" : "cpu_rank_count"), t("layout"), t("median"), t("spread"), t("speedup"), t("efficiency"), t("karp"), t("source")], body, { words: [2, 8], long: [0, 2], quiet: true }), el("ul", {}, ...baselines)),
    data.command ? section("environment", t("environment"), null, el("pre", {}, data.command)) : null,
    data.unknown.length ? section("unknown", t("unknown"), null, el("ul", {}, ...data.unknown.map((l) => el("li", {}, say(l))))) : null];
  return [shown, data.kind === "published" ? t("lead_published") : t("lead_sweep", { points: data.table.length, device: data.device })];
}
function draw_page() {
  views = [];
  document.documentElement.lang = language;
  unit = DATA.kind === "run" ? (DATA.report.machine.device === "cuda" ? "GPU" : "CPU rank") : DATA.unit;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", t(node.dataset.label));
  for (const code of Object.keys(WORDS)) document.getElementById(`lang-${code}`).setAttribute("aria-pressed", String(code === language));
  const [shown, lead] = DATA.kind === "run" ? run_page(DATA) : DATA.kind === "compare" ? compare_page(DATA) : sweep_page(DATA);
  document.getElementById("title").textContent = DATA.kind === "run" ? `${t("run")} ${DATA.title}` : DATA.title;
  document.getElementById("lead").textContent = lead;
  document.getElementById("footer").textContent = t("foot", { version: DATA.version });
  document.getElementById("main").replaceChildren(...shown.filter(Boolean));
  document.querySelector("#contents ul").replaceChildren(...contents_of());
  views.forEach((v) => v.draw());
}
function choose(code) {
  language = code;
  try { localStorage.setItem("language", code); } catch { /* a file may have no storage */ }
  draw_page();
}
const dark_system = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
let theme = null; // as chosen on the page; null: the system's
function show_theme(shown = theme ?? (dark_system.matches ? "dark" : "light")) {
  root.dataset.theme = shown;
  views.forEach((v) => v.draw());
}
document.getElementById("lang-en").addEventListener("click", () => choose("en"));
document.getElementById("lang-ko").addEventListener("click", () => choose("ko"));
document.getElementById("theme").addEventListener("click", () => {
  theme = root.dataset.theme === "dark" ? "light" : "dark";
  show_theme();
});
dark_system.addEventListener("change", () => show_theme());
let width_now = innerWidth;
addEventListener("resize", () => {
  const moved = Math.abs(width_now - innerWidth) > 2;
  if (moved) draw_page();
  width_now = innerWidth;
});
let unfolded = [];
addEventListener("beforeprint", () => { // light, and nothing stays folded
  unfolded = [...document.querySelectorAll("details:not([open])")];
  unfolded.forEach((d) => { d.open = true; });
  show_theme("light");
});
addEventListener("afterprint", () => {
  unfolded.forEach((d) => { d.open = false; });
  show_theme();
});
const asked = new URLSearchParams(location.search).get("lang") ?? location.hash.replace("#lang=", "");
try { language = localStorage.getItem("language") ?? (navigator.language.startsWith("ko") ? "ko" : "en"); } catch { language = "en"; }
if (WORDS[asked]) language = asked;
show_theme();
draw_page();
