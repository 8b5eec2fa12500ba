"""What `verify` runs: stored cases, or a small video of the current model, on one layout and on one rank."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from opensora_launch import __version__
from opensora_launch.doctor.engine_packages import engine_problems
from opensora_launch.errors import Problems
from opensora_launch.plan.compile_choice import compile_problems
from opensora_launch.plan.make_plan import make_plan
from opensora_launch.plan.placement import placements
from opensora_launch.plan.plan import Machine, Plan, VideoRequest
from opensora_launch.plan.rows import Guidance
from opensora_launch.plan.verify_spec import VerifySpec
from opensora_launch.request.compose import compose
from opensora_launch.request.final_config import final_config
from opensora_launch.request.flags import Parsed
from opensora_launch.request.prepare import gpus_of_run, ranks_machine, weight_problems
from opensora_launch.schema.autoencoder import VaeKind
from opensora_launch.schema.config import Engine, LauncherKind, RunConfig, VideoConfig
from opensora_launch.schema.kernel_kinds import Compile, Overlap

SMALL_VIDEO = VideoConfig(resolution=None, height_px=96, width_px=160, num_frames=17)
NUM_STEPS = 13  # guidance oscillates from the tenth step
_PROMPT = "raining, sea. 24 FPS."


@dataclass(frozen=True)
class VerifyRequest:
    run: RunConfig
    spec: VerifySpec
    notes: tuple[str, ...]


def prepare_verify(parsed: Parsed) -> VerifyRequest:
    """Read a command line of `verify`. Raises UserError with everything that keeps it from starting."""
    config_dir, problems = parsed.path("--config-dir"), Problems()
    composed = compose(parsed.rest, config_dir=config_dir).points[0].run
    here = gpus_of_run(composed)
    final = final_config(composed, here, config_dir)
    run, found = final.run, ranks_machine(final.run, here)
    machine = found.machine
    problems.add([*final.problems, *found.problems])
    if run.launcher.kind in (LauncherKind.slurm, LauncherKind.srun):
        problems.add(["verify starts its ranks on this host: use launcher=torchrun, inside an allocation too"])
    problems.add([*engine_problems(run.engine), *compile_problems(run)])
    cases = tuple(os.path.abspath(case) for case in parsed.all("--case"))
    for case in cases:
        reason = "this is a folder" if Path(case).is_dir() else "no such file"
        problems.add([] if Path(case).is_file() else [f"--case {case}: {reason}"])
    problems.add([] if cases else weight_problems(run))
    problems.stop("verify cannot start")
    spec = VerifySpec(
        machine=machine,
        layout=run.layout,
        placement=placements(run.placement, run.fit, machine.ranks, machine.gpus_per_node)[0],
        attention=run.attention.value,
        threads_per_rank=run.launcher.threads_per_rank or max(1, machine.cpus_per_node // machine.gpus_per_node),
        timeout_s=run.launcher.timeout_s,
        cases=cases,
        plan=None if cases else small_plan(run, machine),
        engine=run.engine,
        compile=run.compile if run.compile is Compile.on else Compile.off,
        overlap=run.overlap is Overlap.on and run.engine is Engine.native,
    )
    return VerifyRequest(run, spec, found.notes)


def small_plan(run: RunConfig, machine: Machine) -> Plan:
    """The plan of a small video with oscillating guidance, on the current model and layout."""
    distilled = run.model.mmdit.guidance_embed
    guidance = Guidance(NUM_STEPS, run.sampling.guidance, run.sampling.guidance_img, True, True, False, distilled)
    video = VideoRequest("0000_0", _PROMPT, _PROMPT, "", (), "t2v", 42, guidance)
    size = replace(SMALL_VIDEO, num_frames=1) if run.model.vae.kind is VaeKind.image else SMALL_VIDEO
    return make_plan(replace(run, video=size), machine, [video], __version__)
