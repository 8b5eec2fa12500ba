"""What scripts/chaos does to a run, and what has to come of it."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _chaos.harmed_run import LAUNCHERS, Run, wait_for, words
from _chaos.places import node_command

PHASES = ("start", "load", "text", "denoise", "vae", "save", "report")


@dataclass(frozen=True)
class Harm:
    """What is done to a run, and what has to come of it.

    `code` is the launcher's exit code (128 + that of a signal which ended it), None for any; it is 0 only if all videos
    are there. `cause` is looked for in
    what the launcher printed or, if that could not be read, in what `status` prints afterwards.
    """

    do: Callable[["Run"], None]
    code: int | None
    cause: str
    phases: tuple[str, ...] = PHASES
    launchers: tuple[str, ...] = tuple(LAUNCHERS)


def kill_rank(run: Run) -> None:
    os.kill(run.rank_pid(), signal.SIGKILL)


def stop_rank(run: Run) -> None:
    os.kill(run.rank_pid(), signal.SIGSTOP)


def kill_agent(run: Run) -> None:
    os.kill(run.agent_pid(), signal.SIGKILL)


def kill_launcher(run: Run) -> None:
    run.process.kill()


def end_launcher(run: Run) -> None:
    run.process.terminate()


def ask_to_stop(run: Run) -> None:
    run.process.send_signal(signal.SIGUSR1)


def cancel_step(run: Run) -> None:
    run.rank_pid()
    done = subprocess.run(
        ["squeue", "--noheader", "--steps", f"--jobs={run.env['SLURM_JOB_ID']}", "--format=%i|%j"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (step,) = (i for i, _, name in (line.partition("|") for line in done.stdout.split()) if "opensora" in name)
    subprocess.run(["scancel", step], check=True)


def cancel_allocation(run: Run) -> None:
    subprocess.run(["scancel", run.env["SLURM_JOB_ID"]], check=True)


def lose_node(run: Run) -> None:
    """Cut the power of the node of the rank; it comes back after the run."""
    variables = dict(word.split(b"=", 1) for word in words(run.rank_pid(), "environ") if b"=" in word)
    node = variables[b"SLURMD_NODENAME"].decode()
    node_command("kill-node", node)
    run.undo.append(lambda: node_command("start-node", node))


def fill_disk(run: Run) -> None:
    """Leave no byte on the disk until the run is over. The run's folder is on a tmpfs of a few MiB."""
    filler = run.folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    run.undo.append(filler.unlink)


def close_outputs(run: Run) -> None:
    assert run.process.stdout is not None
    run.process.stdout.close()


def step_clock(run: Run) -> None:
    Path(run.env["CHAOS_CLOCK"]).touch()


def delete_folder(run: Run) -> None:
    wait_for(run.run_dir, "no folder of the run")
    shutil.rmtree(run.runs, ignore_errors=True)


RANKS_LIVE, MANY, HERE = PHASES[:-1], ("torchrun", "slurm", "srun"), ("inline", "torchrun", "srun")
HARMS = {
    "kill a rank": Harm(kill_rank, 1, r"SIGKILL|[Kk]illed", RANKS_LIVE, MANY),
    "stop a rank": Harm(stop_rank, 1, r"rank \d", RANKS_LIVE, MANY),
    "kill the agent": Harm(
        kill_agent, 1, r"what started them, which was killed by SIGKILL", RANKS_LIVE, ("torchrun", "srun")
    ),
    "kill the launcher": Harm(kill_launcher, 137, r"stopped (without a report|before its first attempt)"),
    "end the launcher": Harm(end_launcher, 143, r"stopped by SIGTERM", PHASES[1:], HERE),
    "ask to stop": Harm(ask_to_stop, None, r"stored after step|videos? (is|are) missing", RANKS_LIVE[1:], HERE),
    "cancel the step": Harm(cancel_step, 1, r"which was cancelled", RANKS_LIVE, ("srun",)),
    "cancel the allocation": Harm(
        cancel_allocation, None, r"preempted|which was cancelled|has expired", RANKS_LIVE, ("srun",)
    ),
    "lose a node": Harm(lose_node, 1, r"rank \d|Node failure on n\d", RANKS_LIVE, ("srun",)),
    "fill the disk": Harm(fill_disk, None, r"No space left on device|0 KiB free", PHASES, ("inline", "torchrun")),
    "close the outputs": Harm(close_outputs, 0, ""),
    "step the clock": Harm(step_clock, 0, ""),
    "delete the folder": Harm(delete_folder, None, r"was deleted while"),
}
