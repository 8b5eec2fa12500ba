"""One rank: plan.json in, files out. The room that joins model, sampling and parallel.

The only reader of RANK and WORLD_SIZE, and the only one that makes a process group.
"""

import os
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """`--attempt DIR`, `--verify DIR`, or the overrides and flags of `generate`; the exit code."""
    from opensora_launch.worker.affinity import bind_cpus

    bind_cpus(os.environ)  # torch makes its threads at the first import, on the CPUs of that moment
    from opensora_launch.worker.main import run_rank

    return run_rank(argv)
