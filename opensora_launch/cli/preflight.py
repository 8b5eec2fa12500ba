"""What `generate` asks of this machine before it starts ranks: milliseconds, and no torch."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from opensora_launch.config import Init, LauncherKind, RunConfig
from opensora_launch.errors import UserError
from opensora_launch.launch.command import environment
from opensora_launch.launch.doctor import Patient, quick
from opensora_launch.launch.env_profile import Profiled, profile_problems, profiled
from opensora_launch.launch.findings import Finding, Level, lines
from opensora_launch.launch.host_checks import Needs
from opensora_launch.plan.geometry import geometry
from opensora_launch.plan.plan import Machine, Plan

VIDEO_SHARE = 0.1  # of its raw pixels, that a saved video takes at most


def preflight(runs: Sequence[tuple[RunConfig, Plan]]) -> list[Profiled]:
    """The ranks' environment of each run. Says once what is worth a look, on stderr.

    Raises UserError with what would stop one of them, before anything is written.
    """
    made, problems, said = [], [], []
    for run, plan in runs:
        problems += profile_problems(run.env)
        made.append(profiled(os.environ, run.env))
        found = _look(run, plan, made[-1])
        problems += lines([finding for finding in found if finding.level is Level.fail])
        said += [*made[-1].notes(), *lines([finding for finding in found if finding.level is Level.warn])]
    if problems:
        raise UserError("this machine is not ready (opensora-launch doctor says more)", list(dict.fromkeys(problems)))
    for line in dict.fromkeys(said):
        print(line, file=sys.stderr)
    return made


def _look(run: RunConfig, plan: Plan, made: Profiled) -> list[Finding]:
    """Nothing for a batch job: it runs on other machines than this."""
    if run.launcher.kind is LauncherKind.slurm:
        return []
    env = environment(plan.threads_per_rank, made.env, plan.machine.gpus)
    return quick(patient(run, plan.machine, env, len(plan.videos)))


def patient(run: RunConfig, machine: Machine, env: Mapping[str, str], videos: int) -> Patient:
    """What doctor examines for a run of `videos`."""
    shape = geometry(run.video, run.model.mmdit, run.model.text.t5_max_length)
    pixels = shape.height_px * shape.width_px * shape.num_frames * 3
    on_gpu = machine.device == "cuda"
    needs = Needs(
        ranks=machine.gpus_per_node,
        nodes=machine.nodes,
        disk_bytes=videos * pixels * VIDEO_SHARE,
        gpu_weight_bytes=_resident_bytes(run, machine) if on_gpu else 0.0,
        on_gpu=on_gpu,
    )
    return Patient(env, machine, needs, (Path(run.runs_dir),))


def _resident_bytes(run: RunConfig, machine: Machine) -> float:
    """Weights of the transformer on one GPU, by its file: the least that must be free."""
    file = Path(run.model.folder) / run.model.mmdit_file
    if run.model.init is not Init.checkpoint or not file.is_file() or run.placement.offload.value != "none":
        return 0.0
    over = {"node": machine.gpus_per_node, "all": machine.ranks}.get(run.placement.shard.value, 1)
    return file.stat().st_size / over
