// The videos beside the page, by relative paths: it stays one file, and a file that is not there is named.
const SHOWN_AT_ONCE = 8;
const href_of = (file) => file.split("/").map(encodeURIComponent).join("/"); // a name may hold "#" or "%"
const nearing = new IntersectionObserver((entries) => entries.filter((e) => e.isIntersecting).forEach((e) => { nearing.unobserve(e.target); show_clip(e.target); }), { rootMargin: "300px" });
// A clip loads its contact sheet when it comes near the window. Without one, the browser reads where the video begins.
function show_clip(clip) {
  const { sheet, file } = clip.dataset, missing = () => clip_missing(clip, file);
  const picture = clip.querySelector("img, video");
  if (sheet) {
    const probe = new Image();
    probe.onerror = missing;
    probe.onload = () => picture.setAttribute("poster", href_of(sheet));
    probe.src = href_of(sheet);
  } else if (picture.tagName === "VIDEO") picture.preload = "metadata";
}
function clip_missing(clip, file) {
  const note = clip.querySelector(".missing");
  note.hidden = false;
  note.textContent = t("clip_missing", { file });
}
function clip_of(s, r) {
  const file = s.files[0], size = { width: r.work.width_px, height: r.work.height_px };
  const about = t(r.work.num_frames > 1 ? "clip_about" : "image_about", { ...s, size: t("size_px", r.work) });
  const said = el("figcaption", {}, el("b", {}, s.prompt), el("span", {}, about), file ? el("a", { href: href_of(file) }, file) : null, s.image ? el("a", { href: href_of(s.image) }, t("first_frame")) : null, el("span", { class: "missing", role: "status", hidden: "" }));
  if (!file) {
    const why = el("div", { class: "none", style: s.image ? null : `aspect-ratio:${size.width}/${size.height}` }, `${s.name}: ${s.failure || t("not_made")}`);
    return el("figure", { class: "clip" }, s.image ? el("img", { src: href_of(s.image), loading: "lazy", alt: s.prompt }) : "", why, said);
  }
  const shape = { ...size, style: `aspect-ratio:${size.width}/${size.height}` };
  const clip = el("figure", { class: "clip", "data-sheet": s.sheet, "data-file": file });
  const fails = { onerror: () => clip_missing(clip, file) };
  const playing = file.endsWith(".png")
    ? el("img", { src: href_of(file), loading: "lazy", alt: s.prompt, ...shape, ...fails })
    : el("video", { src: href_of(file), controls: "", preload: "none", playsinline: "", loop: "", "aria-label": s.prompt, ...shape, ...fails });
  const paper = s.sheet ? el("img", { class: "paper", src: href_of(s.sheet), loading: "lazy", alt: s.prompt, ...shape }) : ""; // a video is not printed
  clip.append(playing, paper, said);
  playing.muted = true; // there is no sound; without this a browser may refuse to play
  nearing.observe(clip);
  return clip;
}
function samples_of(r) {
  if (!r.samples.length) return null;
  const clips = r.samples.map((s) => clip_of(s, r)), rest = clips.slice(SHOWN_AT_ONCE);
  const grid = (some) => el("div", { class: `clips${clips.length === 1 ? " one" : ""}` }, ...some);
  return section("samples", t(r.work.num_frames > 1 ? "samples" : "sample_images"), null, grid(clips.slice(0, SHOWN_AT_ONCE)),
    rest.length ? el("details", {}, el("summary", {}, t("more_clips", { count: rest.length })), grid(rest)) : null);
}
