"""Where a transformer's weights live, and how many rows a rank computes at once: what decides whether a run fits."""

from dataclasses import dataclass
from functools import cache

from opensora_launch.schema.config import Fit, Offload, PlacementConfig, Shard, Storage


@dataclass(frozen=True)
class Placement:
    """`resident_blocks` of an offloaded transformer stay on the GPU; `rows_at_once` 0 is all of a rank's rows."""

    shard: Shard = Shard.none
    offload: Offload = Offload.none
    resident_blocks: int = 0
    rows_at_once: int = 0
    storage: Storage = Storage.full

    @property
    def streamed(self) -> bool:
        """Blocks pass through buffers, one ahead of use."""
        return self != Placement(rows_at_once=self.rows_at_once)


def placements(asked: PlacementConfig, fit: Fit, ranks: int, gpus_per_node: int) -> tuple[Placement, ...]:
    """Every placement that leaves what was asked as it is; the first needs most memory, the last least.

    Resident blocks that were not asked for are 0 here: how many fit depends on the card.
    """
    strict = fit is Fit.strict
    shards = [Shard.none] if strict or ranks == 1 else [Shard.none, Shard.node]
    shards += [Shard.all] if ranks > gpus_per_node and not strict else []
    offloads = [Offload.none] if strict else [Offload.none, Offload.host]
    at_once = [0] if strict else [0, 1]
    shards = shards if asked.shard is None else [asked.shard]
    offloads = offloads if asked.offload is None else [asked.offload]
    at_once = at_once if asked.rows_at_once is None else [asked.rows_at_once]
    resident = asked.resident_blocks or 0
    return tuple(
        Placement(shard, offload, resident if offload is Offload.host else 0, rows, asked.storage)
        for rows in at_once
        for offload in offloads
        for shard in shards
    )


@cache
def staying(blocks: int, placement: Placement) -> tuple[bool, ...]:
    """Which blocks are whole on the device: those that stay, evenly among those that come and go."""
    if placement.offload is Offload.none:
        return (placement.shard is Shard.none,) * blocks
    resident = min(placement.resident_blocks, blocks)
    return tuple((i + 1) * resident // blocks > i * resident // blocks for i in range(blocks))


def next_smaller(placement: Placement, asked: PlacementConfig, fit: Fit, ranks: int, per_node: int) -> Placement | None:
    """What to go on with where memory has run out; None where nothing that may change needs less."""
    if placement.resident_blocks and asked.resident_blocks is None and fit is Fit.auto:
        return Placement(placement.shard, placement.offload, 0, placement.rows_at_once, placement.storage)
    ladder = placements(asked, fit, ranks, per_node)
    below = ladder[ladder.index(placement) + 1 :] if placement in ladder else ()
    return next(iter(below), None)


def in_words(placement: Placement) -> str:
    in_host, count = placement.offload is Offload.host, placement.resident_blocks
    whole = "weights in host memory" if in_host else "replicated weights"
    spread = {Shard.node: "weights spread over a node", Shard.all: "weights spread over all ranks"}
    said = spread.get(placement.shard, whole)
    said += ", in host memory" if in_host and placement.shard in spread else ""
    said += (f", {count} blocks resident" if count > 1 else ", 1 block resident") if count else ""
    said += " in fp8 (approximate)" if placement.storage is Storage.fp8 else ""
    return said + (", one row at a time" if placement.rows_at_once == 1 else "")


def as_overrides(placement: Placement) -> str:
    """The words of a command line that ask for it."""
    said = [f"placement.shard={placement.shard.value}"] if placement.shard is not Shard.none else []
    said += ["placement.offload=host"] if placement.offload is Offload.host else []
    said += [f"placement.rows_at_once={placement.rows_at_once}"] if placement.rows_at_once else []
    return " ".join(said) or "placement.shard=none placement.offload=none"


def as_changes(before: Placement, after: Placement) -> str:
    """The words of a command line that make one of the other: every field that differs."""
    old = vars(before)
    return " ".join(f"placement.{name}={value}" for name, value in vars(after).items() if value != old[name])


def placement_problems(asked: PlacementConfig) -> list[str]:
    """Lines for what cannot be meant."""
    problems = [
        f"placement.{name}={count} must be at least 0, or null to be chosen"
        for name, count in (("resident_blocks", asked.resident_blocks), ("rows_at_once", asked.rows_at_once))
        if count is not None and count < 0
    ]
    if asked.resident_blocks and asked.offload is Offload.none:
        problems.append(
            f"placement.resident_blocks={asked.resident_blocks} needs placement.offload=host: "
            f"without it all blocks are resident"
        )
    return problems
