"""How much more CPU time one thing takes than another, on whatever machine this is. No test asserts seconds."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROUNDS = 12
# What every verb that composes a config has to pay for: Hydra itself, with nothing to compose.
HYDRA = "from hydra import compose, initialize\nwith initialize(version_base=None):\n    compose()\n"


def times_slower(work: Callable[[], float], baseline: Callable[[], float], enough: float) -> float:
    """The CPU time of `work` in units of `baseline`, each the best so far; the first ratio that is `enough`, if any.

    Both are measured in turn: what others take from the machine's caches varies from round to round.
    """
    ours, theirs = float("inf"), float("inf")
    for _ in range(ROUNDS):
        ours, theirs = min(ours, work()), min(theirs, baseline())
        if ours <= enough * theirs:
            break
    return ours / theirs


def here(work: Callable[[], object]) -> Callable[[], float]:
    """CPU seconds of a call in this process."""

    def measured() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    return measured


def in_python(code: str, says: str = "") -> Callable[[], float]:
    """CPU seconds of a Python process that runs `code`, whose last words on stderr must be `says`."""

    def measured() -> float:
        started = os.times()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        ended = os.times()
        assert done.stderr.strip().rpartition("\n")[2] == says, done.stderr
        return ended.children_user + ended.children_system - started.children_user - started.children_system

    return measured


def main_without(argv: list[str], modules: set[str]) -> str:
    """Code that runs a command and then says which of the modules it has imported."""
    return (
        "import sys\nfrom opensora_launch.cli import main\n"
        f"assert main({argv!r}) == 0\n"
        f"sys.exit(str(sorted({modules!r} & set(sys.modules))))"
    )
