"""Where a rank's output goes."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opensora_launch.telemetry.events import ConstantWeights
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.worker.rank import Rank


def redirect_output(path: Path) -> None:
    """Append what this process and its libraries print from now on to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def start_logging(me: Rank) -> None:
    """Log to standard output, with time and rank in each line."""
    line = f"%(asctime)s rank {me.rank} %(message)s"
    logging.basicConfig(format=line, datefmt="%H:%M:%S", stream=sys.stdout, level=logging.INFO, force=True)
    logging.raiseExceptions = False  # a line that a full disk refuses is no error of the run
    logging.getLogger("httpx").setLevel(logging.WARNING)


def keep_log(path: Path) -> None:
    """Write log lines to `path` too, unless standard output goes there already, as under srun."""
    if path.exists() and os.path.samestat(os.fstat(sys.stdout.fileno()), path.stat()):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.getLogger().handlers[0].formatter)
    logging.getLogger().addHandler(handler)


@contextmanager
def recorded(recorder: Recorder) -> Iterator[None]:
    """Record the weights that warnings name (warn_of_constant), for the launcher and the report."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if constant := getattr(record, "constant", None):
                recorder.constant(ConstantWeights(*constant))

    handler, log = Handler(), logging.getLogger("opensora_launch.worker")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
