"""Which CPUs a rank of a batch job uses, where the site has not bound it. No torch: its threads inherit this."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from opensora_launch.worker.slurm_env import read_step

NODES = Path("/sys/devices/system/node")


def bind_cpus(env: Mapping[str, str]) -> None:
    """Take this rank's part of the CPUs that the job's ranks of this node share. Does nothing outside a batch job."""
    step = read_step(env)
    if step is None or step.local_tasks == 1:
        return
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) <= int(env.get("SLURM_CPUS_PER_TASK", "0")):
        return  # bound already
    os.sched_setaffinity(0, own_cpus(allowed, numa_nodes(), step.local_rank, step.local_tasks))


def own_cpus(allowed: Sequence[int], numa: Sequence[Sequence[int]], index: int, ranks: int) -> list[int]:
    """The share of rank `index` of `ranks`: neighbours on a NUMA node as far as possible; all of them if too few."""
    if len(allowed) < ranks:
        return list(allowed)
    known = [cpu for node in numa for cpu in node if cpu in set(allowed)]
    ordered = known + [cpu for cpu in allowed if cpu not in set(known)]
    first, last = (len(ordered) * i // ranks for i in (index, index + 1))
    return sorted(ordered[first:last])


def numa_nodes(root: Path = NODES) -> list[list[int]]:
    """The CPUs of each NUMA node, as the kernel lists them; empty where it does not."""
    found = []
    for folder in sorted(root.glob("node[0-9]*"), key=lambda p: int(p.name.removeprefix("node"))):
        try:
            found.append(parse_cpus((folder / "cpulist").read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return found


def parse_cpus(text: str) -> list[int]:
    """ "0-3,8" as numbers."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus += range(int(first), int(last or first) + 1)
    return cpus
