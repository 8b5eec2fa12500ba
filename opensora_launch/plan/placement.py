"""Where the transformer's weights are kept, and how many rows a rank computes at once: whether a run fits."""

from dataclasses import dataclass
from functools import cache

from opensora_launch.schema.config import Fit, Offload, PlacementConfig, Shard, Storage


@dataclass(frozen=True)
class Placement:
    """`resident_blocks` of an offloaded transformer stay on the GPU; `rows_at_once` 0 means all rows of a rank."""

    shard: Shard = Shard.none
    offload: Offload = Offload.none
    resident_blocks: int = 0
    rows_at_once: int = 0
    storage: Storage = Storage.full

    @property
    def streamed(self) -> bool:
        """Whether blocks pass through buffers, one block ahead of use."""
        whole = (Shard.none, Offload.none, Storage.full)
        return (self.shard, self.offload, self.storage) != whole


def placements(config: PlacementConfig, fit: Fit, ranks: int, gpus_per_node: int) -> tuple[Placement, ...]:
    """Return every placement that keeps the configured settings, from the most memory needed to the least.

    Resident blocks that are not configured are 0 here: how many fit depends on the card.
    """
    strict = fit is Fit.strict
    shards = [Shard.none] if strict or ranks == 1 else [Shard.none, Shard.node]
    shards += [Shard.all] if ranks > gpus_per_node and not strict else []
    offloads = [Offload.none] if strict else [Offload.none, Offload.host]
    at_once = [0] if strict else [0, 1]
    shards = shards if config.shard is None else [config.shard]
    offloads = offloads if config.offload is None else [config.offload]
    at_once = at_once if config.rows_at_once is None else [config.rows_at_once]
    resident = config.resident_blocks or 0
    return tuple(
        Placement(shard, offload, resident if offload is Offload.host else 0, rows, config.storage)
        for rows in at_once
        for offload in offloads
        for shard in shards
    )


@cache
def staying(blocks: int, placement: Placement) -> tuple[bool, ...]:
    """Return for each block whether it stays whole on the device. Those that stay are spread evenly over the depth."""
    if placement.offload is Offload.none:
        return (placement.shard is Shard.none,) * blocks
    resident = min(placement.resident_blocks, blocks)
    return tuple((i + 1) * resident // blocks > i * resident // blocks for i in range(blocks))


def next_smaller(
    placement: Placement, config: PlacementConfig, fit: Fit, ranks: int, per_node: int
) -> Placement | None:
    """Return the placement to continue with after memory ran out; None if no allowed one needs less."""
    if placement.resident_blocks and config.resident_blocks is None and fit is Fit.auto:
        return Placement(placement.shard, placement.offload, 0, placement.rows_at_once, placement.storage)
    ladder = placements(config, fit, ranks, per_node)
    below = ladder[ladder.index(placement) + 1 :] if placement in ladder else ()
    return next(iter(below), None)


def placement_text(placement: Placement) -> str:
    in_host, count = placement.offload is Offload.host, placement.resident_blocks
    whole = "weights in host memory" if in_host else "replicated weights"
    spread = {Shard.node: "weights spread over a node", Shard.all: "weights spread over all ranks"}
    text = spread.get(placement.shard, whole)
    text += ", in host memory" if in_host and placement.shard in spread else ""
    text += (f", {count} blocks resident" if count > 1 else ", 1 block resident") if count else ""
    text += " in fp8 (approximate)" if placement.storage is Storage.fp8 else ""
    return text + (", one row at a time" if placement.rows_at_once == 1 else "")


def as_overrides(placement: Placement) -> str:
    """Return the command-line overrides that select a placement."""
    words = [f"placement.shard={placement.shard.value}"] if placement.shard is not Shard.none else []
    words += ["placement.offload=host"] if placement.offload is Offload.host else []
    words += [f"placement.rows_at_once={placement.rows_at_once}"] if placement.rows_at_once else []
    return " ".join(words) or "placement.shard=none placement.offload=none"


def as_changes(before: Placement, after: Placement) -> str:
    """Return the command-line overrides for every field in which `after` differs from `before`."""
    old = vars(before)
    return " ".join(f"placement.{name}={value}" for name, value in vars(after).items() if value != old[name])


def placement_problems(config: PlacementConfig) -> list[str]:
    problems = [
        f"placement.{name}={count} must be at least 0, or null for the planner to choose"
        for name, count in (("resident_blocks", config.resident_blocks), ("rows_at_once", config.rows_at_once))
        if count is not None and count < 0
    ]
    if config.resident_blocks and config.offload is Offload.none:
        problems.append(
            f"placement.resident_blocks={config.resident_blocks} needs placement.offload=host; "
            f"without offloading all blocks are resident"
        )
    return problems
