"""One rank: it reads plan.json and writes videos. This room joins model, sampling, parallel and engines.

No other room reads RANK and WORLD_SIZE, or makes a process group.
"""

import os
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run one rank and return its exit code. argv: `--attempt DIR`, `--verify DIR`, or the arguments of `generate`."""
    from opensora_launch.worker.affinity import bind_cpus

    bind_cpus(os.environ)  # torch makes its threads at the first import, on the CPUs that are allowed then
    from opensora_launch.worker.run_rank import run_rank

    return run_rank(argv)
