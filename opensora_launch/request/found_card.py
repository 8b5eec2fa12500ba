"""The card of a run by what NVML found: the catalogue's rates with the memory, the slot and the limit that are here."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from opensora_launch.machine.host_gpus import GpuFacts
from opensora_launch.plan.memory import GIB, USABLE
from opensora_launch.request.catalogue import match
from opensora_launch.schema.cards import PCIE_GB_S, Card, joined

_SAME = 0.01  # the catalogue and NVML round differently


def found_card(named: Card, gpus: Sequence[GpuFacts], cards: Mapping[str, Card]) -> tuple[Card, list[str]]:
    """The card of ranks that take these GPUs, and notes on it. `named` is as composed; its keys that are set remain.

    `hardware.mixed` adds cards to those that are found.

    A card that the catalogue does not know stays unknown, with the memory that is here. A named card that is not the
    one here keeps its facts, with no more memory than is here.
    """
    by_name: dict[str, list[GpuFacts]] = {}
    for gpu in gpus:
        card = match(gpu.name, cards)
        by_name.setdefault(str(card.name) if card else "", []).append(gpu)
    if named.name is not None:
        if list(by_name) == [named.name] and named == cards[named.name]:
            return as_found(named, gpus), []
        return replace(named, memory_gib=min([named.memory_gib, *_memories_gib(gpus)])), []
    if "" in by_name:
        names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
        least = named.memory_gib or min(_memories_gib(gpus), default=0.0)
        return replace(named, memory_gib=least), [f"{names}: not in configs/hardware, so layouts are chosen by rule"]
    made = [as_found(cards[name], alike) for name, alike in by_name.items()]
    unlike = [text for card in made if (text := _difference(cards[str(card.name)], card, by_name[str(card.name)]))]
    given = {key: value for key, value in vars(named).items() if value != vars(Card())[key]}
    more = [cards[name] for name in named.mixed if name not in by_name]
    card = replace(joined([*made, *more]), **given)
    return card, [f"hardware={card.name}, found here" + (f" with {'; '.join(unlike)}" if unlike else "")]


def as_found(card: Card, gpus: Sequence[GpuFacts]) -> Card:
    """The card with the least free memory, the slowest slot and the lowest power limit of these GPUs, where known."""
    slots = [gpu.pcie for gpu in gpus if gpu.pcie and gpu.pcie[1] in PCIE_GB_S]
    slot = min(slots, key=lambda slot: PCIE_GB_S[slot[1]] * slot[2], default=None)
    return replace(
        card,
        memory_gib=min(_memories_gib(gpus), default=card.memory_gib),
        pcie_generation=slot[1] if slot else card.pcie_generation,  # the slot's best: idle GPUs lower it
        pcie_lanes=slot[2] if slot else card.pcie_lanes,
        tdp_w=min((gpu.power_limit_w for gpu in gpus if gpu.power_limit_w), default=card.tdp_w),
    )


def _memories_gib(gpus: Sequence[GpuFacts]) -> list[float]:
    """The memory to plan with on each GPU where it is known: all, or what others have left of it.

    CUDA can use all of the free memory, and the plan the share USABLE of what this says: so much more is said. On an
    idle GPU that is more than its memory, for the driver keeps less than the rest.
    """
    found = []
    for gpu in gpus:
        if gpu.total_bytes:
            ours = sum(used or 0 for pid, used in gpu.processes if pid == os.getpid())
            free = gpu.total_bytes if gpu.free_bytes is None else (gpu.free_bytes + ours) / USABLE
            found.append(min(gpu.total_bytes, free) / GIB)
    return found


def _difference(listed: Card, found: Card, gpus: Sequence[GpuFacts]) -> str:
    """What the catalogue has otherwise, or others hold; "" if nothing."""
    parts, total = [], min((gpu.total_bytes / GIB for gpu in gpus if gpu.total_bytes), default=0.0)
    if found.memory_gib < total * (1 - _SAME):
        parts.append(f"{found.memory_gib:.1f} of {total:.1f} GiB free")
    elif abs(found.memory_gib / listed.memory_gib - 1) > _SAME:
        parts.append(f"{found.memory_gib:.1f} GiB (catalogue: {listed.memory_gib:.1f})")
    if (found.pcie_generation, found.pcie_lanes) != (listed.pcie_generation, listed.pcie_lanes):
        parts.append(f"{found.pcie_text} (catalogue: {listed.pcie_text})")
    if abs(found.tdp_w - listed.tdp_w) > _SAME * listed.tdp_w:
        parts.append(f"a power limit of {found.tdp_w:.0f} W (catalogue: {listed.tdp_w:.0f})")
    return ", ".join(parts)
