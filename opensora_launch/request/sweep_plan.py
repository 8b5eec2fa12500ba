"""What a sweep is to run and what of it is done: `sweep.json`, and the points that a command line asks for."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from opensora_launch.errors import UserError
from opensora_launch.machine.host import count_cpus
from opensora_launch.request.compose import Point, compose
from opensora_launch.request.flags import GENERATE_FLAGS, parse
from opensora_launch.request.prepare import Problems, prepare_jobs
from opensora_launch.rundir import SweepDir, write_whole
from opensora_launch.schema.config import LauncherKind
from opensora_launch.slurm.allocation import cpus_a_node, in_allocation

OWN = {"gpus": "[1,2]", "repeats": "3", "warmup": "1", "scaling": "strong"}
COUNTS = r"\d+(?:x\d+)?"


@dataclass(frozen=True)
class Spot:
    """One point of the sweep: `series` names what it shares with other counts of GPUs."""

    series: str
    nodes: int
    gpus_per_node: int
    overrides: tuple[str, ...]
    device: str = "cuda"  # or "cpu"

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def size(self) -> str:
        """In words: "2 GPUs"."""
        return f"{self.gpus} {'GPU' if self.device == 'cuda' else 'CPU rank'}{'s' * (self.gpus != 1)}"


@dataclass(frozen=True)
class Done:
    """One run that ended well. `busy`: the share of this machine's CPUs that others used just before it; None where it
    is not known, or the ranks ran on others.
    """

    spot: int
    round: int
    run: str  # its folder, in the sweep's
    busy: float | None


@dataclass(frozen=True)
class Sweep:
    """What sweep.json holds: what to run, and what is done."""

    argv: tuple[str, ...]
    spots: tuple[Spot, ...]
    repeats: int
    warmup: int
    weak: bool
    elsewhere: bool  # the ranks run on other machines than this
    done: tuple[Done, ...]

    def write(self, folder: SweepDir) -> None:
        write_whole(folder.state, json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n")


def read_sweep(folder: SweepDir) -> Sweep:
    """What a sweep's folder says of it; UserError if it is none."""
    try:
        data = json.loads(folder.state.read_text(encoding="utf-8"))
        spots = tuple(Spot(**(s | {"overrides": tuple(s["overrides"])})) for s in data["spots"])
        return Sweep(
            **(data | {"argv": tuple(data["argv"]), "spots": spots, "done": tuple(Done(**d) for d in data["done"])})
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder} is no sweep: {folder.state.name} cannot be read ({error})") from error


@dataclass(frozen=True)
class Asked:
    """A command line of `bench`, read: its points, its own settings, where runs go, and whose machine they use."""

    spots: tuple[Spot, ...]
    own: dict[str, str]
    runs_dir: Path
    elsewhere: bool  # the ranks run on other machines than this


def read_words(words: Sequence[str], config_dir: Path | None) -> Asked:
    """The points of a command line. UserError with everything that is wrong with it.

    Inside an allocation each run is a step of it, unless a launcher is named: so all points use the same nodes.
    """
    own = OWN | {key: value for key, _, value in (w.partition("=") for w in words) if key in OWN}
    rest = [w for w in words if w.partition("=")[0] not in OWN]
    if problems := _own_problems(own):
        raise UserError("this sweep cannot start", problems)
    counts = re.findall(COUNTS, own["gpus"])
    inside = in_allocation(os.environ)
    if inside and not any(w.partition("=")[0] in ("launcher", "launcher.kind") for w in rest):
        rest.append("launcher=srun")
    if not any(w.startswith("launcher.threads_per_rank=") for w in rest):  # as many on every count: it is equal work
        most = max(int(text.rpartition("x")[2]) for text in counts)
        cpus = cpus_a_node(os.environ) if inside else count_cpus()
        rest.append(f"launcher.threads_per_rank={max(1, cpus // most)}")
    points = compose(rest, multirun=True, config_dir=config_dir).points
    spots = tuple(_spot(point, text, own["scaling"] == "weak") for point in points for text in counts)
    folders = {point.run.runs_dir for point in points}
    if len(folders) > 1:
        raise UserError(f"a sweep has one folder, and runs_dir names {len(folders)}")
    elsewhere = points[0].run.launcher.kind in (LauncherKind.slurm, LauncherKind.srun)
    return Asked(spots, own, Path(os.path.abspath(os.path.expanduser(folders.pop()))), elsewhere)


def _own_problems(own: dict[str, str]) -> list[str]:
    problems = []
    counts = re.findall(COUNTS, own["gpus"])
    no_counts = not re.fullmatch(rf"\[?{COUNTS}(,{COUNTS})*\]?", own["gpus"])
    if no_counts or any(int(n) < 1 for text in counts for n in text.split("x")):
        problems.append(f"gpus={own['gpus']} must be counts of GPUs, such as [1,2,4,2x8]; 2x8 is nodes x GPUs")
    for name, least in (("repeats", 1), ("warmup", 0)):
        if not re.fullmatch("[0-9]+", own[name]) or int(own[name]) < least:
            problems.append(f"{name}={own[name]} must be a whole number of at least {least}")
    if own["scaling"] not in ("strong", "weak"):
        problems.append(f"scaling={own['scaling']} must be strong (equal work) or weak (work grows with the GPUs)")
    return problems


def _spot(point: Point, count: str, weak: bool) -> Spot:
    nodes, _, per_node = count.rpartition("x")
    size = (int(nodes or 1), int(per_node))
    here = [f"topology.nodes={size[0]}", f"topology.gpus_per_node={size[1]}"]
    if weak:
        here.append(f"sampling.num_samples={size[0] * size[1]}")
    if point.run.launcher.kind is LauncherKind.slurm:
        here.append("follow=true")
    series = " ".join(point.swept) or point.run.model.name
    return Spot(series, *size, (*point.overrides, *here))


def checked(argv: Sequence[str], spots: Sequence[Spot]) -> tuple[Spot, ...]:
    """The points, each with its device. UserError with all that keeps any of them from starting, before one does."""
    problems, found = Problems(), []
    for spot in spots:
        with problems.collect():
            jobs = prepare_jobs(parse("generate", GENERATE_FLAGS, [*argv, *spot.overrides])).jobs
            found.append(replace(spot, device=jobs[0].plan.machine.device))
    problems.stop("this sweep cannot start")
    return tuple(found)


def in_words(spots: Sequence[Spot], places: Sequence[int]) -> str:
    return ", ".join(f"{spots[n].series} on {spots[n].size}" for n in places)


def rounds(plan: Sweep) -> list[tuple[int, int]]:
    """(round, place of a point): every second round goes backwards."""
    return [(r, place) for r in range(plan.warmup + plan.repeats) for place in order(len(plan.spots), r)]


def order(count: int, round_: int) -> list[int]:
    """Of the points in a round: every second one goes backwards."""
    return list(range(count))[:: 1 if round_ % 2 == 0 else -1]


def with_done(plan: Sweep, done: Done) -> Sweep:
    return replace(plan, done=(*plan.done, done))
