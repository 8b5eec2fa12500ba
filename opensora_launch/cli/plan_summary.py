"""A plan as text: what is made, how much work it is, and how the ranks share it."""

from collections import Counter
from collections.abc import Iterator

from opensora_launch.cli.terminal import short_name
from opensora_launch.plan.placement import placement_text
from opensora_launch.plan.plan import Plan, rows_per_step
from opensora_launch.plan.rows import NUM_ROWS
from opensora_launch.schema.autoencoder import VaeKind
from opensora_launch.schema.kernel_kinds import APPROXIMATE, Compile


def plan_summary(plan: Plan) -> str:
    """The plan in aligned lines of "name   value"."""
    lines = list(_facts(plan))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in lines)


def made_name(plan: Plan) -> str:
    """What the run makes: video or image."""
    return "video" if plan.geometry.num_frames > 1 else "image"


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    g, machine, model = plan.geometry, plan.machine, plan.model
    compiled = "" if plan.compile is Compile.off else ", compiled blocks"
    kind = ", random weights" if model.init == "random" else ""
    attention = plan.attention + (" (approximate)" if plan.attention in APPROXIMATE else "")
    yield "model", f"{model.name}{kind}; {plan.precision}, attention={attention}, engine={plan.engine}{compiled}"
    seconds = g.num_frames / g.fps
    frames = f"{g.num_frames} frames at {g.fps} fps ({seconds:.1f} s)" if g.num_frames > 1 else "an image"
    yield "size", f"{g.width_px} x {g.height_px} pixels, {frames}"
    yield "tokens", f"{g.grid.total_tokens:,} = {g.text_tokens:,} text + {g.grid.video_tokens:,} {made_name(plan)}"
    if plan.images:
        yield "images", _images(plan.images)
    yield from _videos(plan)
    yield from _work(plan)
    yield "weights", placement_text(plan.placement)
    for rows, layout in plan.layouts:
        yield f"layout, {rows} row{'s' if rows > 1 else ''}", str(layout)
    nodes = f" on {machine.nodes} nodes" if machine.nodes > 1 else ""
    unit = "GPU" if machine.device == "cuda" else "CPU rank"
    threads = f"{plan.threads_per_rank} CPU thread{'s' if plan.threads_per_rank > 1 else ''} each"
    yield "ranks", f"{machine.ranks} ({unit}{'s' if machine.ranks > 1 else ''}{nodes}), {threads}"


def _images(plan: Plan) -> str:
    """How the first frames are made."""
    size, steps = plan.geometry, plan.sampling.num_steps
    made = f"{len(plan.videos)} by {plan.model.name}, {size.width_px} x {size.height_px} pixels, {steps} steps"
    return f"{made}; {placement_text(plan.placement)}, {plan.layouts[-1][1]}"


def _videos(plan: Plan) -> Iterator[tuple[str, str]]:
    kinds = Counter(video.cond_type for video in plan.videos)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    batches = f"{len(plan.batches)} batch{'es' if len(plan.batches) > 1 else ''}"
    yield f"{made_name(plan)}s", f"{len(plan.videos)} ({listed}) in {batches}"
    for video in plan.videos[:4]:
        text = video.prompt if len(video.prompt) <= 60 else f"{video.prompt[:57]}..."
        yield f"  {short_name(video.name)}", f"{text!r}, seed {video.seed}, {video.guidance.num_steps} steps"
    if len(plan.videos) > 4:
        yield "  ...", f"{len(plan.videos) - 4} more"


def _work(plan: Plan) -> Iterator[tuple[str, str]]:
    frames, prune = plan.geometry.latent_frames, plan.sampling.prune_rows
    steps = Counter(rows for video in plan.videos for rows in rows_per_step(video, frames, prune))
    each = ", ".join(f"{count} steps of {rows}" for rows, count in sorted(steps.items(), reverse=True))
    ours = sum(rows * count for rows, count in steps.items())
    theirs = sum(v.guidance.num_steps * (1 if v.guidance.distilled else NUM_ROWS) for v in plan.videos)
    fewer = f", {theirs / ours:.3f}x fewer" if theirs > ours else ""
    reference = "" if plan.model.vae.kind is VaeKind.image else f"; the reference computes {theirs}{fewer}"
    yield "rows", f"{each}: {ours} row-forwards{reference}"
