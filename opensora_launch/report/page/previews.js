// What the videos looked like while they were denoised. The images stay in the run's folder.
function previews_of(r) {
  const videos = Object.entries(r.previews);
  if (!videos.length) return null;
  const spent = r.attempts.flatMap((a) => a.ranks).reduce((sum, rank) => sum + rank.previews_s, 0);
  const step = (file) => Number(/step(\d+)/.exec(file)[1]);
  const one = ([name, files]) => el("div", {}, el("h3", {}, name), el("div", { class: "previews" }, ...files.map((file) =>
    el("figure", {}, el("img", { src: href_of(file), alt: t("preview_alt", { name, step: step(file) }), loading: "lazy" }), el("figcaption", {}, t("preview_alt", { name, step: step(file) }))))));
  return section("previews", t("previews"), t("previews_about", { seconds: spent }), ...videos.map(one));
}
