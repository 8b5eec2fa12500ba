"""Check this machine before `generate` starts ranks: takes milliseconds and no torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from opensora_launch.doctor.check_result import CheckResult, Level, lines
from opensora_launch.doctor.examine import CheckTarget, profile_results, quick_checks
from opensora_launch.doctor.host_checks import Needs
from opensora_launch.errors import UserError
from opensora_launch.launch.command import environment
from opensora_launch.launch.env_profile import Profiled, profile_problems, profiled
from opensora_launch.plan.make_plan import workload_of
from opensora_launch.plan.memory import memory_of_run
from opensora_launch.plan.plan import Plan
from opensora_launch.plan.times import uses_nvlink
from opensora_launch.schema.config import Init, LauncherKind, RunConfig

VIDEO_SHARE = 0.1  # the most that a saved video takes of its raw pixels


def preflight(runs: Sequence[tuple[RunConfig, Plan]]) -> tuple[list[Profiled], list[str]]:
    """The environment of each run's ranks, and one line per warning.

    Raises UserError if anything would stop one of the runs, before anything is written.
    """
    made, problems, warnings = [], [], []
    for run, plan in runs:
        problems += profile_problems(run.env)
        made.append(profiled(os.environ, run.env))
        found = _check(run, plan, made[-1])
        problems += lines([result for result in found if result.level is Level.fail])
        warnings += lines([result for result in found if result.level is Level.warn])
    if problems:
        raise UserError("this machine is not ready (opensora-launch doctor tells more)", list(dict.fromkeys(problems)))
    return made, list(dict.fromkeys(warnings))


def _check(run: RunConfig, plan: Plan, made: Profiled) -> list[CheckResult]:
    """Batch jobs and steps run on other machines, so for them only the removed variables are reported."""
    target = target_of(run, plan, environment(plan.threads_per_rank, made.env, plan.machine.gpus))
    elsewhere = run.launcher.kind in (LauncherKind.slurm, LauncherKind.srun)
    return [*profile_results(target, made), *([] if elsewhere else quick_checks(target))]


def target_of(run: RunConfig, plan: Plan, env: Mapping[str, str]) -> CheckTarget:
    """What to check for a run: the environment of its ranks, and their predicted needs."""
    shape, machine = plan.geometry, plan.machine
    pixels = shape.height_px * shape.width_px * shape.num_frames * 3
    needs = Needs(
        ranks=machine.gpus_per_node,
        nodes=machine.nodes,
        disk_bytes=len(plan.videos) * pixels * VIDEO_SHARE,
        on_gpu=machine.device == "cuda",
    )
    return CheckTarget(env, machine, _with_memory(needs, run, plan) if plan.videos else needs, (Path(run.runs_dir),))


def _with_memory(needs: Needs, run: RunConfig, plan: Plan) -> Needs:
    """Add the needs of the busiest GPU and of the host. With CPU ranks, the host holds every rank's weights."""
    work = workload_of(run, plan.machine, plan.geometry, plan.videos, plan.sampling.batch_size or 1)
    memory = memory_of_run(
        work.net, work.grid, work.video, plan.layouts, gpus_per_node=work.gpus_per_node, placement=plan.placement,
        element_bytes=work.element_bytes, engine=plan.engine, nvlink=uses_nvlink(run.hardware, work.topology),
        overlap=plan.overlap,
    )  # fmt: skip
    if not needs.on_gpu:
        total = memory.weights * needs.ranks
        return replace(needs, host_weight_bytes=total, host_bytes=total)
    has_text = run.model.init is not Init.random
    peak = max(memory.denoise, memory.decode, memory.text if has_text else 0.0)
    return replace(needs, gpu_bytes=peak, gpu_weight_bytes=memory.weights, host_bytes=memory.host)
