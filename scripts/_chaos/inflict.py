"""Harm a run at a place, and look at what comes of it."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from _bench import ROOT

from _chaos.harmed_run import CLI, END_S, LAUNCHERS, VIDEOS, Run, wait_for, words
from _chaos.harms import HARMS, Harm, delete_folder, kill_launcher
from _chaos.places import ON_SLURM, allocation

TOOLS = ROOT / "scripts" / "_chaos"
GONE_S = 20.0  # a process that is there that long after its launcher is left behind
JOB_S = 60.0  # the same for a job, which goes on without the launcher that follows it


@dataclass(frozen=True)
class Case:
    launcher: str
    harm: str
    phase: str

    def __str__(self) -> str:
        return f"{self.launcher} {self.harm} {self.phase}"


@dataclass
class Outcome:
    """What came of a harm. Every list is empty if all is well; they hold sentences."""

    unnamed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    resumed: bool = False

    @property
    def problems(self) -> list[str]:
        return self.unnamed + self.lost + self.orphans


def variables(case: Case, folder: Path, place: str) -> dict[str, str]:
    """The variables of a run: its mark, where a rank is held, and a clock of its own."""
    signs = folder / "signs"
    signs.mkdir()
    env = os.environ | {"CHAOS_HOLD": str(signs / "hold"), "PYTHONPATH": f"{TOOLS / 'held'}:{ROOT}"}
    if place:
        env["CHAOS_PLACE"] = place
    if case.harm == "step the clock":
        library = signs / "clock.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, TOOLS / "clock.c"], check=True)
        env |= {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(signs / "stepped")}
    return env


def harm_at(case: Case, run: Run, rng: random.Random) -> None:
    """Wait for the place, do the harm there, and let the run go on."""
    sign, do = run.env["CHAOS_HOLD"], HARMS[case.harm].do
    if case.phase == "start":
        if "rank" in case.harm or "agent" in case.harm:
            run.rank_pid()
        time.sleep(rng.uniform(0, 2))
        do(run)
    elif case.phase == "report":
        wait_for(lambda: all_done(run), "the ranks did not end")
        run.process.send_signal(signal.SIGSTOP)
        do(run)
        run.process.send_signal(signal.SIGCONT)
    else:
        wait_for(Path(f"{sign}.reached").exists, "the rank did not come to the place")
        do(run)
        Path(f"{sign}.go").touch()


def all_done(run: Run) -> bool:
    beats = [p.read_text(errors="replace") for p in run.runs.glob("2*/attempts/0/heartbeat/rank*.json")]
    return len(beats) == LAUNCHERS[run.launcher] and all('"state":"done"' in beat for beat in beats)


def place_of(case: Case, rank: int, rng: random.Random) -> str:
    """Where the rank is held: at the second video if the phase belongs to one, in one of its steps if it has some."""
    if case.phase in ("start", "report"):
        return ""
    video = "0001_0" if case.phase in ("denoise", "vae", "save") else ""
    step = str(rng.randrange(VIDEOS["0001_0"])) if case.phase == "denoise" else ""
    return f"{case.phase},{video},{step},{rank}"


def end_of(process: subprocess.Popen[bytes]) -> tuple[int | None, str]:
    """Exit code and output; None if it hangs, and then it is killed."""
    code: int | None
    try:
        code = process.wait(END_S)
        code = 128 - code if code < 0 else code
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    assert process.stdout is not None
    return code, "" if process.stdout.closed else process.stdout.read().decode(errors="replace")


def left_behind(run: Run) -> list[str]:
    """What still runs a while after the launcher's end. It is killed."""
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: not run.processes(), "", JOB_S if run.launcher == "slurm" else GONE_S)
    found = [" ".join(w.decode(errors="replace") for w in words(pid, "cmdline"))[:100] for pid in run.processes()]
    for pid in run.processes():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return [f"left behind: {line}" for line in found]


def inflict(case: Case, folder: Path, want: Mapping[str, bytes], rng: random.Random) -> Outcome:
    """Start a run, harm it, look at what is left, resume it, and compare."""
    harm, found = HARMS[case.harm], Outcome()
    rank = rng.randrange(LAUNCHERS[case.launcher])
    if case.phase == "save":
        rank = 0  # the first rank saves
    env = variables(case, folder, place_of(case, rank, rng))
    with allocation(case.launcher) as place:
        run = Run(folder, case.launcher, rank, env | place)
        try:
            harm_at(case, run, rng)
        except TimeoutError as error:
            found.unnamed.append(str(error))
        code, out = end_of(run.process)
        found.orphans += left_behind(run)
    for undo in run.undo:
        undo()
    run_dir = run.run_dir()
    if harm.do is kill_launcher and run_dir:
        out += subprocess.run([*CLI, "status", run_dir], cwd=folder, capture_output=True, text=True).stdout
    made = run.samples() == want if run_dir else harm.do is kill_launcher
    found.unnamed += faults_of_the_end(harm, code, out, made=made)
    for name, content in run.samples().items():
        if not name.startswith(".") and content != want[name]:
            found.lost.append(f"{name} is half a file")
    if run_dir and harm.do is not delete_folder:
        resume = [*CLI, "generate", "--resume", str(run_dir)]
        with allocation(case.launcher) as place:
            again = subprocess.run(resume, cwd=folder, env=os.environ | place, capture_output=True, text=True)
        found.resumed = again.returncode == 0 and run.samples() == want
        if not found.resumed:
            found.lost.append(f"resume: exit {again.returncode}, {sorted(run.samples())}: {again.stderr[-600:]}")
    return found


def faults_of_the_end(harm: Harm, code: int | None, out: str, *, made: bool) -> list[str]:
    """What is wrong with how a run ended and what it said.

    made: all videos are there, or the launcher was killed before there was a folder.
    """
    if code is None:
        return ["hangs"]
    found = []
    if code == 0 and not made:
        found.append("exit 0 without all videos")
    if harm.code not in (None, code):
        found.append(f"exit {code}, {harm.code} expected")
    if not made and not re.search(harm.cause, out):
        found.append(f"does not say {harm.cause}: {out[-1500:]}")
    if re.search(r"^Traceback", out, re.MULTILINE):  # unlike the end of a rank's log, which is shown further in
        found.append(f"a traceback: {out[-1500:]}")
    return found


def unharmed(launcher: str) -> dict[str, bytes]:
    """What a run without harm makes."""
    with tempfile.TemporaryDirectory() as name, allocation(launcher) as place:
        case, folder = Case(launcher, "no harm", "start"), Path(name)
        run = Run(folder, launcher, 0, variables(case, folder, "") | place)
        code, out = end_of(run.process)
        assert code == 0, out
        return run.samples()


def cannot(case: Case) -> str:
    """Why this machine cannot do that, or nothing."""
    if case.launcher in ON_SLURM and not (os.geteuid() == 0 and all(map(shutil.which, ("slurmctld", "munged", "ip")))):
        return "only root can start a Slurm of its own, with slurmctld, munged and ip installed"
    if case.harm == "fill the disk" and os.geteuid() != 0:
        return "only root can mount a small disk"
    if case.harm == "step the clock" and not shutil.which("cc"):
        return "there is no C compiler"
    return ""
