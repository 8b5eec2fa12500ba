"""Choose the GPUs of this host that a run takes: those it names, or all that nobody uses. Describe them in words."""

import os
import pwd
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from opensora_launch.machine.host_gpus import DIVIDED, GpuFacts, HostGpus, LostGpu, PairFacts, no_gpus_problem
from opensora_launch.plan.memory import GIB

BUSY_BYTES = 512 * 2**20  # a process that holds less is a display or a monitor


@dataclass(frozen=True)
class Picked:
    """GPUs that a run takes. `lines` report what was found and left out; `problems` are the user's mistakes."""

    gpus: tuple[GpuFacts, ...] = ()
    lines: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    pairs: tuple[PairFacts, ...] = ()  # how all GPUs of the host are joined
    visible: int = 0  # GPUs that CUDA shows, with those that are in use or lost
    fault: str = ""  # why no GPU can be used where there should be one


def pick_gpus(host: HostGpus, asked: Sequence[str], visible: str | None, who: Callable[[int], str]) -> Picked:
    """Take the GPUs that `asked` names by number or UUID, or else the free ones among those that CUDA shows.

    `visible` is CUDA_VISIBLE_DEVICES; `who` describes the owner of a process.
    """
    shown, lost = host.visible(visible), host.visible_lost(visible)
    count = len(shown) + len(lost)
    if fault := no_gpus_problem(host, visible):
        return Picked(visible=count, fault=fault)
    if asked:
        found, problems = _named(shown, lost, asked)
        return Picked(found, tuple(_about(found, host.pairs)), tuple(problems), host.pairs, count)
    skipped = {gpu.uuid: why for gpu in shown if (why := _busy(gpu, who))}
    free = tuple(gpu for gpu in shown if gpu.uuid not in skipped)
    doubtful = () if free else tuple(gpu for gpu in shown if not gpu.mig and not _holds_much(gpu))
    free = free or doubtful
    lines = [
        f"GPU {gpu.index} ({gpu.name}) is {'taken, although' if gpu in doubtful else 'left out:'} {skipped[gpu.uuid]}"
        for gpu in shown
        if gpu.uuid in skipped
    ]
    lines += [f"GPU {gpu.index} is left out: {gpu.why}" for gpu in lost]
    return Picked(free, (*_about(free, host.pairs), *lines), (), host.pairs, count)


def _named(
    gpus: Sequence[GpuFacts], lost: Sequence[LostGpu], asked: Sequence[str]
) -> tuple[tuple[GpuFacts, ...], list[str]]:
    if not gpus and not lost:
        named = ",".join(map(str, asked))
        return (), [f"topology.gpus=[{named}]: there is no GPU here; leave it out, or take CPU ranks: topology=cpu2"]
    found: list[GpuFacts] = []
    problems = []
    there = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none"
    for entry in (str(word) for word in asked):
        is_number = entry.isascii() and entry.isdigit()
        hits = [gpu for gpu in gpus if (gpu.index == int(entry) if is_number else entry and gpu.uuid.startswith(entry))]
        if len(hits) != 1:
            count = "no GPU" if not hits else f"{len(hits)} GPUs"
            why = [f"; GPU {gpu.index}: {gpu.why}" for gpu in lost]
            problems.append(f"topology.gpus: {entry} names {count} here; there are: {there}{''.join(why)}")
        elif hits[0] in found:
            problems.append(f"topology.gpus: {entry} is named twice")
        else:
            found += hits
    problems += [f"topology.gpus: GPU {gpu.index} cannot be taken: {DIVIDED}" for gpu in found if gpu.mig]
    return tuple(found), problems


def _busy(gpu: GpuFacts, who: Callable[[int], str]) -> str:
    """Why a GPU cannot be taken: who uses it; "" if nobody does."""
    if gpu.mig:
        return DIVIDED
    others = [(pid, used) for pid, used in gpu.processes if pid != os.getpid()]
    return ", ".join(f"{who(pid)} holds {_size(used)}" for pid, used in others if used is None or used >= BUSY_BYTES)


def _holds_much(gpu: GpuFacts) -> bool:
    """Whether a process of somebody else is known to hold much of its memory."""
    return any((used or 0) >= BUSY_BYTES for pid, used in gpu.processes if pid != os.getpid())


def _size(used: int | None) -> str:
    return "memory, it is not known how much" if used is None else f"{used / GIB:.1f} GiB"


def owner(pid: int) -> str:
    """Describe a process: "process 4711 (python of kim)", or only its number if it cannot be read."""
    folder = Path(f"/proc/{pid}")
    try:
        name, uid = (folder / "comm").read_text(encoding="utf-8").strip(), folder.stat().st_uid
        return f"process {pid} ({name} of {pwd.getpwuid(uid).pw_name})"
    except OSError:
        return f"process {pid}"
    except KeyError:
        return f"process {pid} ({name} of user {uid})"


def _about(gpus: Sequence[GpuFacts], pairs: Sequence[PairFacts]) -> list[str]:
    """Describe GPUs: "found 4 x NVIDIA H100 80GB HBM3, 79.6 GiB each; joined: 6 pairs by NV18"."""
    if not gpus:
        return []
    cards = Counter((gpu.name, gpu.total_bytes) for gpu in gpus)
    shared = {gpu.name for gpu in gpus if gpu.shares_memory}
    each = [
        f"{n} x {name}"
        + (f", {total / GIB:.1f} GiB each" if total else ", memory shared with the host" if name in shared else "")
        for (name, total), n in cards.items()
    ]
    used = {gpu.index for gpu in gpus}
    paths = Counter(pair.path for pair in pairs if {pair.first, pair.second} <= used)
    links = [f"{n} pair{'s' * (n > 1)} by {path}" for path, n in paths.most_common()]
    return ["found " + "; ".join(each) + (f"; joined: {', '.join(links)}" if links else "")]


def link_of(gpus: Sequence[GpuFacts], pairs: Sequence[PairFacts]) -> str:
    """The link that all pairs have: "nvlink" if every pair has it, else "pcie"; "auto" for one GPU."""
    used = {gpu.index for gpu in gpus}
    mine = [pair for pair in pairs if {pair.first, pair.second} <= used]
    if not mine:
        return "auto"
    return "nvlink" if all(pair.nvlink for pair in mine) else "pcie"
