"""The points of a scaling sweep that a command line of `bench` asks for."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from opensora_launch.errors import Problems, UserError
from opensora_launch.machine.host import count_cpus
from opensora_launch.plan.table import layout_text
from opensora_launch.request.compose import ConfigPoint, compose
from opensora_launch.request.final_config import absolute
from opensora_launch.request.flags import GENERATE_FLAGS, Parsed, parse
from opensora_launch.request.gpu_counts import GpuCount, read_counts
from opensora_launch.request.prepare import prepare_runs
from opensora_launch.runs.sweep_state import BenchPoint, Sweep
from opensora_launch.schema.config import LauncherKind
from opensora_launch.slurm.allocation import cpus_per_node, in_allocation

BENCH_KEYS = {"gpus": "[1,2]", "repeats": "3", "warmup": "1", "scaling": "strong"}  # of bench alone, with defaults
_PROMPT = "waves at dusk"


@dataclass(frozen=True)
class BenchRequest:
    """A new sweep, and the folder that gets its folder."""

    sweep: Sweep
    runs_dir: Path


def prepare_bench(parsed: Parsed) -> BenchRequest:
    """Read a command line of `bench`. Raises UserError with everything that keeps any of its points from starting."""
    asked = read_words(parsed.rest, parsed.path("--config-dir"))
    argv = ["--strict", *parsed.again({"--prompt": str, "--prompts": absolute, "--config-dir": absolute})]  # equal work
    if not parsed.has("--prompt") and not parsed.has("--prompts"):
        argv += ["--prompt", _PROMPT]
    sweep = replace(asked.sweep, argv=tuple(argv), points=checked(argv, asked.sweep.points))
    return BenchRequest(sweep, asked.runs_dir)


def read_words(words: Sequence[str], config_dir: Path | None) -> BenchRequest:
    """The points of a command line without its flags. Raises UserError with everything that is wrong with it.

    Inside an allocation each run is a step of it, unless a launcher is named, so that all points use the same nodes.
    """
    own = BENCH_KEYS | {key: value for key, _, value in (w.partition("=") for w in words) if key in BENCH_KEYS}
    rest = [w for w in words if w.partition("=")[0] not in BENCH_KEYS]
    _check_own(own)
    counts, weak = read_counts(own["gpus"]), own["scaling"] == "weak"
    inside = in_allocation(os.environ)
    if inside and not any(w.partition("=")[0] in ("launcher", "launcher.kind") for w in rest):
        rest.append("launcher=srun")
    if not any(w.startswith("launcher.threads_per_rank=") for w in rest):  # equal for every count: equal work
        most = max(count.per_node for count in counts)
        cpus = cpus_per_node(os.environ) if inside else count_cpus()
        rest.append(f"launcher.threads_per_rank={max(1, cpus // most)}")
    composed = compose(rest, multirun=True, config_dir=config_dir).points
    points = tuple(_point(point, count, weak) for point in composed for count in counts)
    folders = {point.run.runs_dir for point in composed}
    if len(folders) > 1:
        raise UserError(f"a sweep has one folder, and runs_dir names {len(folders)}")
    elsewhere = composed[0].run.launcher.kind in (LauncherKind.slurm, LauncherKind.srun)
    sweep = Sweep((), points, int(own["repeats"]), int(own["warmup"]), weak, elsewhere)
    return BenchRequest(sweep, Path(absolute(folders.pop())))


def checked(argv: Sequence[str], points: Sequence[BenchPoint]) -> tuple[BenchPoint, ...]:
    """The points, each with its device and layout. Raises UserError with what keeps any of them from starting."""
    problems, found = Problems(), []
    for point in points:
        with problems.collect():
            runs = prepare_runs(parse("generate", GENERATE_FLAGS, [*argv, *point.overrides])).runs
            plan = runs[0].plan
            names = dict.fromkeys(layout_text(layout) for _, layout in reversed(plan.layouts))
            found.append(replace(point, device=plan.machine.device, layout=", then ".join(names)))
    problems.stop("this sweep cannot start")
    return tuple(found)


def _check_own(own: dict[str, str]) -> None:
    problems = Problems()
    with problems.collect():
        read_counts(own["gpus"])
    for name, least in (("repeats", 1), ("warmup", 0)):
        if not re.fullmatch("[0-9]+", own[name]) or int(own[name]) < least:
            problems.add([f"{name}={own[name]} must be a whole number of at least {least}"])
    if own["scaling"] not in ("strong", "weak"):
        problems.add([f"scaling={own['scaling']} must be strong (equal work) or weak (work grows with the GPUs)"])
    problems.stop("this sweep cannot start")


def _point(point: ConfigPoint, count: GpuCount, weak: bool) -> BenchPoint:
    overrides = [*point.overrides, *count.overrides]
    if weak:
        overrides.append(f"sampling.num_samples={count.nodes * count.per_node}")
    if point.run.launcher.kind is LauncherKind.slurm:
        overrides.append("follow=true")
    series = " ".join(point.swept) or point.run.model.name
    return BenchPoint(series, count.nodes, count.per_node, tuple(overrides))
