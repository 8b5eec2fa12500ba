"""A launcher of its own process, to be signalled: `fake_launcher.py SCENARIO ATTEMPT TIMEOUT_S`. Prints the outcome."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from opensora_launch.launch.command import WORKER, command
from opensora_launch.launch.supervise import Task, supervise
from opensora_launch.plan.plan import Machine
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import LauncherKind

RANKS = Path(__file__).with_name("fake_ranks.py")

if __name__ == "__main__":
    scenario, attempt, timeout_s = sys.argv[1:]
    argv = [sys.executable, str(RANKS), scenario, "2", "--attempt", attempt]
    if scenario.startswith("torchrun-"):
        made = command(LauncherKind.torchrun, Machine("cpu", 1, 2, 2), AttemptDir(Path(attempt)))
        ranks = [str(RANKS), "rank", scenario.removeprefix("torchrun-"), "of-torchrun", "--attempt", attempt]
        argv = made[: made.index(WORKER) - 1] + ranks
    looks: list[int] = []
    outcome = supervise(
        Task(argv, os.environ, AttemptDir(Path(attempt)), 2, float(timeout_s)), lambda beats: looks.append(len(beats))
    )
    failure = asdict(outcome.failure) if outcome.failure else None
    print(json.dumps({"code": outcome.code, "failure": failure, "most_beats": max(looks)}))
    sys.exit(outcome.code)
