"""One rank: it reads plan.json and writes videos. This room joins model, sampling, parallel and engines.

No other room reads RANK and WORLD_SIZE, or makes a process group.
"""

import os
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run one rank and return its exit code. argv: `--attempt DIR`, `--verify DIR`, or the arguments of `generate`."""
    from opensora_launch.worker.affinity import bind_cpus
    from opensora_launch.worker.own_gpu import take_own_instance

    bind_cpus(os.environ)  # torch makes its threads at the first import, on the CPUs that are allowed then
    take_own_instance(os.environ)
    try:
        from opensora_launch.worker.run_rank import run_rank
    except Exception as error:
        if argv[0] in ("--attempt", "--verify"):
            _record_import(error, argv[1])
        raise
    return run_rank(argv)


def _record_import(error: Exception, folder: str) -> None:
    """Record that this rank cannot import its program: it has no log yet."""
    import socket
    import traceback
    from pathlib import Path

    from opensora_launch.rundir import AttemptDir
    from opensora_launch.telemetry.failure import Failure, record_failure

    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    message, text = f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
    failure = Failure(rank, socket.gethostname(), "failure", message, phase="setup", traceback=text)
    record_failure(AttemptDir(Path(folder)), failure)
