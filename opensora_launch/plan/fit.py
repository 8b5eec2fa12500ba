"""Explain what does not fit in memory: what it needs, and what would fit."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from opensora_launch.plan.choose import Option, may_fit, options, ways_to_fit
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.placement import Placement, as_overrides, placement_text
from opensora_launch.plan.workload import Workload
from opensora_launch.schema.config import Fit, LayoutConfig, Offload, PlacementConfig

GPU_COUNTS = (*range(1, 9), *range(16, 65, 8))  # numbers of GPUs that people have: one machine, then several full ones


def fit_problems(work: Workload, fixed: LayoutConfig, found: Sequence[Option]) -> list[str]:
    """Return why no layout fits, and what would; empty if one fits. `found` are the options, best first."""
    if not found or found[0].fits:
        return []
    least = min(found, key=lambda option: option.memory.peak)
    peak, limit = least.memory.peak / GIB, least.limit_bytes / GIB
    need = f"{phase_of(least)} needs {peak:.1f} of {limit:.1f} GiB on {work.card.name}"
    better = next(_remedies(work, fixed, least), "") or _hopeless(work)
    divided = f", divided by layout.tp={least.layout.tp}" if least.layout.tp > 1 else ""
    return [f"{placement_text(least.placement)}{divided}: {need}; {better}"]


def _remedies(work: Workload, fixed: LayoutConfig, least: Option) -> Iterator[str]:
    """Yield what would fit, the smallest change first."""
    for option in ways_to_fit(work, fixed)[:2]:
        slower = option.phases.making / least.phases.making - 1
        pace = f"{slower:.0%} slower" if slower > 0.005 else "no slower"
        yield f"{_overrides(work, option.placement)} fits in {option.memory.peak / GIB:.1f} GiB, {pace}"
    free = replace(work, placement=PlacementConfig(storage=work.placement.storage), fit=Fit.auto)
    for ranks in (count for count in GPU_COUNTS if count > work.ranks):
        more = replace(free, ranks=ranks, gpus_per_node=ranks if ranks <= 8 else work.gpus_per_node)
        if not may_fit(more, LayoutConfig()):
            continue
        if (best := next(iter(options(more, LayoutConfig())), None)) and best.fits:
            yield f"{ranks} GPUs fit with {as_overrides(best.placement)}"
            break
    for share in (2, 3, 4, 6, 8):
        frames = (work.video.num_frames // share) // 4 * 4 + 1
        latent = (frames - 1) // 4 + 1
        less = replace(
            free,
            grid=replace(work.grid, latent_frames=latent),
            video=replace(work.video, num_frames=frames),
        )
        if (best := next(iter(options(less, fixed)), None)) and best.fits:
            yield f"video.num_frames={frames} fits with {as_overrides(best.placement)}"
            break


def _overrides(work: Workload, placement: Placement) -> str:
    """Return the overrides for a placement, with the number of resident blocks if the user configured another."""
    if work.placement.resident_blocks is None:
        return as_overrides(placement)
    count = placement.resident_blocks if placement.offload is Offload.host else "null"
    return f"{as_overrides(placement)} placement.resident_blocks={count}"


def _hopeless(work: Workload) -> str:
    """Say what even the least demanding placement needs."""
    bare = replace(work, placement=PlacementConfig(storage=work.placement.storage), fit=Fit.auto)
    least = min(options(bare, LayoutConfig()), key=lambda option: option.memory.peak)
    need = f"{phase_of(least)} needs {least.memory.peak / GIB:.1f} GiB"
    return f"even with {as_overrides(least.placement)}, {need}: use a larger card, or a smaller video"


def phase_of(option: Option) -> str:
    peaks = {"text encoding": option.memory.text, "denoising": option.memory.denoise, "VAE": option.memory.decode}
    return max(peaks, key=lambda name: peaks[name])


def reason(option: Option, best: Option) -> str:
    """Return why an option is not chosen: its memory, or the part of its time that exceeds the best one's most."""
    if not option.fits:
        return f"{phase_of(option)} needs {option.memory.peak / GIB:.1f} of {option.limit_bytes / GIB:.1f} GiB"
    mine, its = option.phases, best.phases
    more_ring = option.layout.ring > best.layout.ring
    parts = {
        "adding up ring results" if more_ring else "idle ranks or uneven shares": mine.compute - its.compute,
        "Ulysses traffic": mine.ulysses - its.ulysses,
        "ring traffic": mine.ring - its.ring,
        "sums over divided weights": mine.tensor - its.tensor,
        "gathering weights and latents": mine.gather - its.gather,
        "kernel launches": mine.launch - its.launch,
        "the VAE on fewer ranks": mine.vae - its.vae + mine.save - its.save,
    }
    name = max(parts, key=lambda key: parts[key])
    if parts[name] < 0.005 * its.making:
        return "equally fast; fewer guidance ranks" if option.layout.cfg < best.layout.cfg else "equally fast"
    return f"{mine.making / its.making:.2f}x: {name} {parts[name]:+.1f} s"
