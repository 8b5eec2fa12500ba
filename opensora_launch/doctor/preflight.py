"""What `generate` asks of this machine before it starts ranks: milliseconds, and no torch."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from opensora_launch.doctor.examine import Patient, kept_away, quick
from opensora_launch.doctor.host_checks import Needs
from opensora_launch.doctor.results import Finding, Level, lines
from opensora_launch.errors import UserError
from opensora_launch.launch.command import environment
from opensora_launch.launch.env_profile import Profiled, profile_problems, profiled
from opensora_launch.plan.memory import memory_of
from opensora_launch.plan.plan import Plan, work_of
from opensora_launch.schema.config import Init, LauncherKind, RunConfig

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
        said += lines([finding for finding in found if finding.level is Level.warn])
    if problems:
        raise UserError("this machine is not ready (opensora-launch doctor says more)", list(dict.fromkeys(problems)))
    for line in dict.fromkeys(said):
        print(line, file=sys.stderr)
    return made


def _look(run: RunConfig, plan: Plan, made: Profiled) -> list[Finding]:
    """Of a batch job and of a step only what their profile takes away: they run on other machines than this."""
    who = patient(run, plan, environment(plan.threads_per_rank, made.env, plan.machine.gpus))
    elsewhere = run.launcher.kind in (LauncherKind.slurm, LauncherKind.srun)
    return [*kept_away(who, made), *([] if elsewhere else quick(who))]


def patient(run: RunConfig, plan: Plan, env: Mapping[str, str]) -> Patient:
    """What doctor examines for a run: its ranks' environment, and what they are predicted to take."""
    shape, machine = plan.geometry, plan.machine
    pixels = shape.height_px * shape.width_px * shape.num_frames * 3
    needs = Needs(
        ranks=machine.gpus_per_node,
        nodes=machine.nodes,
        disk_bytes=len(plan.videos) * pixels * VIDEO_SHARE,
        on_gpu=machine.device == "cuda",
    )
    return Patient(env, machine, _with_memory(needs, run, plan) if plan.videos else needs, (Path(run.runs_dir),))


def _with_memory(needs: Needs, run: RunConfig, plan: Plan) -> Needs:
    """The busiest GPU, and the host: on CPU ranks, each has its share of the weights there."""
    work = work_of(run, plan.machine, plan.geometry, plan.videos, plan.sampling.batch_size or 1)
    found = [
        memory_of(
            work.net, work.shape, layout, work.video, rows=rows, gpus_per_node=work.gpus_per_node,
            placement=plan.placement, element_bytes=work.element_bytes,
        )
        for rows, layout in plan.layouts
    ]  # fmt: skip
    weights = max(memory.weights for memory in found)
    if not needs.on_gpu:
        return replace(needs, host_weight_bytes=weights * needs.ranks, host_bytes=weights * needs.ranks)
    has_text = run.model.init is not Init.random
    peak = max(max(memory.denoise, memory.decode, memory.text if has_text else 0.0) for memory in found)
    host = max(memory.host for memory in found)
    return replace(needs, gpu_bytes=peak, gpu_weight_bytes=weights, host_bytes=host)
