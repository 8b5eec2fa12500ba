"""What does not fit in memory, in words: what it needs, and what would fit."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from opensora_launch.plan.choose import Option, may_fit, options, ways_to_fit
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.placement import Placement, as_overrides, in_words
from opensora_launch.plan.work import Work
from opensora_launch.schema.config import Fit, LayoutConfig, Offload, PlacementConfig

COUNTS = (*range(1, 9), *range(16, 65, 8))  # of GPUs that people have: a machine's, then whole machines


def fit_problems(work: Work, fixed: LayoutConfig, found: Sequence[Option]) -> list[str]:
    """Why no layout fits and what would; empty where one does. `found` are the options, the best first."""
    if not found or found[0].fits:
        return []
    least = min(found, key=lambda option: option.memory.peak)
    peak, limit = least.memory.peak / GIB, least.limit_bytes / GIB
    need = f"{phase_of(least)} needs {peak:.1f} of {limit:.1f} GiB on {work.card.name}"
    better = next(_remedies(work, fixed, least), "") or _hopeless(work)
    cut = f", cut by layout.tp={least.layout.tp}" if least.layout.tp > 1 else ""
    return [f"{in_words(least.placement)}{cut}: {need}; {better}"]


def _remedies(work: Work, fixed: LayoutConfig, least: Option) -> Iterator[str]:
    """What would fit, the least change first."""
    for option in ways_to_fit(work, fixed)[:2]:
        slower = option.phases.making / least.phases.making - 1
        pace = f"{slower:.0%} slower" if slower > 0.005 else "no slower"
        yield f"{_asked(work, option.placement)} fits in {option.memory.peak / GIB:.1f} GiB, {pace}"
    anyhow = replace(work, placement=PlacementConfig(storage=work.placement.storage), fit=Fit.auto)
    for ranks in (count for count in COUNTS if count > work.ranks):
        more = replace(anyhow, ranks=ranks, gpus_per_node=ranks if ranks <= 8 else work.gpus_per_node)
        if not may_fit(more, LayoutConfig()):
            continue
        if (best := next(iter(options(more, LayoutConfig())), None)) and best.fits:
            yield f"{ranks} GPUs fit with {as_overrides(best.placement)}"
            break
    for share in (2, 3, 4, 6, 8):
        frames = (work.video.num_frames // share) // 4 * 4 + 1
        latent = (frames - 1) // 4 + 1
        less = replace(
            anyhow,
            shape=replace(work.shape, latent_frames=latent),
            video=replace(work.video, num_frames=frames),
        )
        if (best := next(iter(options(less, fixed)), None)) and best.fits:
            yield f"video.num_frames={frames} fits with {as_overrides(best.placement)}"
            break


def _asked(work: Work, placement: Placement) -> str:
    """With the number of resident blocks, where the user has fixed another."""
    if work.placement.resident_blocks is None:
        return as_overrides(placement)
    count = placement.resident_blocks if placement.offload is Offload.host else "null"
    return f"{as_overrides(placement)} placement.resident_blocks={count}"


def _hopeless(work: Work) -> str:
    """What the least demanding placement still needs."""
    bare = replace(work, placement=PlacementConfig(storage=work.placement.storage), fit=Fit.auto)
    least = min(options(bare, LayoutConfig()), key=lambda option: option.memory.peak)
    return f"even with {as_overrides(least.placement)}, {phase_of(least)} needs {least.memory.peak / GIB:.1f} GiB: " + (
        "use a larger card, or a smaller video"
    )


def phase_of(option: Option) -> str:
    """The phase with the peak."""
    peaks = {"text encoding": option.memory.text, "denoising": option.memory.denoise, "VAE": option.memory.decode}
    return max(peaks, key=lambda name: peaks[name])


def reason(option: Option, best: Option) -> str:
    """Why an option is not chosen: its memory, or the part of its time that the best one does not have."""
    if not option.fits:
        return f"{phase_of(option)} needs {option.memory.peak / GIB:.1f} of {option.limit_bytes / GIB:.1f} GiB"
    parts = {
        "sums of the ring" if option.layout.ring > best.layout.ring else "idle or uneven shares": option.phases.compute
        - best.phases.compute,
        "Ulysses traffic": option.phases.ulysses - best.phases.ulysses,
        "ring traffic": option.phases.ring - best.phases.ring,
        "sums of cut weights": option.phases.tensor - best.phases.tensor,
        "weights and latents gathered": option.phases.gather - best.phases.gather,
        "kernel launches": option.phases.launch - best.phases.launch,
        "the VAE on fewer ranks": option.phases.vae - best.phases.vae + option.phases.save - best.phases.save,
    }
    name = max(parts, key=lambda key: parts[key])
    if parts[name] < 0.005 * best.phases.making:
        return "as fast; fewer guidance ranks" if option.layout.cfg < best.layout.cfg else "as fast"
    return f"{option.phases.making / best.phases.making:.2f}x: {name} {parts[name]:+.1f} s"
