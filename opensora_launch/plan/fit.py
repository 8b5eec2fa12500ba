"""What does not fit in memory, in words: what it needs, and what would fit."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from opensora_launch.config import LayoutConfig, Offload, PlacementConfig, Shard
from opensora_launch.plan.choose import Option, Work, options, ways_to_fit
from opensora_launch.plan.memory import GIB

MOST_RANKS = 64


def fit_problems(work: Work, fixed: LayoutConfig, found: Sequence[Option]) -> list[str]:
    """Why no layout fits and what would; empty where one does. `found` are the options, the best first."""
    if not found or found[0].fits:
        return []
    least = min(found, key=lambda option: option.memory.peak)
    peak, limit = least.memory.peak / GIB, least.limit_bytes / GIB
    need = f"{phase_of(least)} needs {peak:.1f} of {limit:.1f} GiB on {work.card.name}"
    better = next(_remedies(work, fixed, least), "") or _hopeless(work)
    return [f"{placement_words(work.placement)}: {need}; {better}"]


def _remedies(work: Work, fixed: LayoutConfig, least: Option) -> Iterator[str]:
    """What would fit, the least change first."""
    for option in ways_to_fit(work, fixed)[:2]:
        slower = option.phases.making / least.phases.making - 1
        pace = f"{slower:.0%} slower" if slower > 0.005 else "no slower"
        yield f"{placement_override(option.placement)} fits in {option.memory.peak / GIB:.1f} GiB, {pace}"
    everywhere = replace(work, placement=PlacementConfig(Shard.all))
    for ranks in range(work.ranks + 1, MOST_RANKS + 1):
        more = replace(everywhere, ranks=ranks, gpus_per_node=ranks if ranks <= 8 else work.gpus_per_node)
        if (best := next(iter(options(more, LayoutConfig())), None)) and best.fits:
            yield f"placement.shard=all fits on {ranks} GPUs"
            break
    for share in (2, 3, 4, 6, 8):
        frames = (work.video.num_frames // share) // 4 * 4 + 1
        latent = (frames - 1) // 4 + 1
        less = replace(
            work,
            shape=replace(work.shape, latent_frames=latent),
            video=replace(work.video, num_frames=frames),
            placement=PlacementConfig(Shard.none, Offload.host),
        )
        if (best := next(iter(options(less, fixed)), None)) and best.fits:
            yield f"placement.offload=host with video.num_frames={frames} fits"
            break


def _hopeless(work: Work) -> str:
    """What the least demanding placement still needs."""
    bare = replace(work, placement=PlacementConfig(Shard.all, Offload.host))
    least = min(options(bare, LayoutConfig()), key=lambda option: option.memory.peak)
    return (
        f"even in host memory and spread, {phase_of(least)} needs {least.memory.peak / GIB:.1f} GiB: use a larger card"
    )


def phase_of(option: Option) -> str:
    """The phase with the peak."""
    peaks = {"text encoding": option.memory.text, "denoising": option.memory.denoise, "VAE": option.memory.decode}
    return max(peaks, key=lambda name: peaks[name])


def placement_words(placement: PlacementConfig) -> str:
    kinds = {Shard.none: "replicated weights", Shard.node: "weights spread over a node", Shard.all: "spread weights"}
    return kinds[placement.shard] + (" in host memory" if placement.offload is Offload.host else "")


def placement_override(placement: PlacementConfig) -> str:
    said = [f"placement.shard={placement.shard.value}"] if placement.shard is not Shard.none else []
    said += ["placement.offload=host"] if placement.offload is Offload.host else []
    return " ".join(said) or "placement.shard=none placement.offload=none"


def reason(option: Option, best: Option) -> str:
    """Why an option is not chosen: its memory, or the part of its time that the best one does not have."""
    if not option.fits:
        return f"{phase_of(option)} needs {option.memory.peak / GIB:.1f} of {option.limit_bytes / GIB:.1f} GiB"
    parts = {
        "sums of the ring" if option.layout.ring > best.layout.ring else "idle or uneven shares": option.phases.compute
        - best.phases.compute,
        "Ulysses traffic": option.phases.ulysses - best.phases.ulysses,
        "ring traffic": option.phases.ring - best.phases.ring,
        "weights and latents gathered": option.phases.gather - best.phases.gather,
        "kernel launches": option.phases.launch - best.phases.launch,
        "the VAE on fewer ranks": option.phases.vae - best.phases.vae + option.phases.save - best.phases.save,
    }
    name = max(parts, key=lambda key: parts[key])
    if parts[name] < 0.005 * best.phases.making:
        return "as fast; fewer guidance ranks" if option.layout.cfg < best.layout.cfg else "as fast"
    return f"{option.phases.making / best.phases.making:.2f}x: {name} {parts[name]:+.1f} s"
