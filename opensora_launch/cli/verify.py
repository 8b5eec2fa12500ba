"""`opensora-launch verify`: N ranks against one, and against stored tensors."""

import json
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from opensora_launch import __version__
from opensora_launch.cli.progress import progress
from opensora_launch.cli.start import failure_lines
from opensora_launch.doctor.engine_packages import engine_problems
from opensora_launch.errors import UserError
from opensora_launch.launch.command import command, environment
from opensora_launch.launch.env_profile import profiled
from opensora_launch.launch.supervise import Task, supervise
from opensora_launch.machine.find_machine import found_gpus
from opensora_launch.plan.placement import placements
from opensora_launch.plan.plan import Machine, Plan, VideoRequest, make_plan
from opensora_launch.plan.rows import Guidance
from opensora_launch.plan.verify_spec import VerifyLine, VerifySpec
from opensora_launch.request.compose import compose
from opensora_launch.request.flags import Parsed
from opensora_launch.request.hardware import settle_hardware
from opensora_launch.request.prepare import finish_config, machine_of, weight_problems
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import LauncherKind, RunConfig, VideoConfig

REDUCED = VideoConfig(resolution=None, height_px=96, width_px=160, num_frames=17)
STEPS = 13  # the guidance oscillates from the tenth on
PROMPT = "raining, sea. 24 FPS."


def verify(parsed: Parsed) -> int:
    """Print a line per compared tensor; 0 when all hold, 1 otherwise."""
    folder = parsed.one("--config-dir")
    run = compose(parsed.rest, multirun=False, config_dir=None if folder is None else Path(folder)).points[0].run
    finish_config(run, None)
    settle_hardware(run, found_gpus(run.topology, os.environ), None if folder is None else Path(folder))
    machine, problems = machine_of(run, None)
    if run.launcher.kind in (LauncherKind.slurm, LauncherKind.srun):
        problems.append("verify starts its ranks on this host: use launcher=torchrun, inside an allocation too")
    problems += engine_problems(run.engine)
    cases = tuple(os.path.abspath(case) for case in parsed.all("--case"))
    problems += [f"--case {case}: no such file" for case in cases if not Path(case).is_file()]
    if not cases:
        problems += weight_problems(run)
    if problems:
        raise UserError("verify cannot start", problems)
    spec = VerifySpec(
        machine=machine,
        layout=run.layout,
        placement=placements(run.placement, run.fit, machine.ranks, machine.gpus_per_node)[0],
        attention=run.attention.value,
        threads_per_rank=run.launcher.threads_per_rank or max(1, machine.cpus_per_node // machine.gpus_per_node),
        timeout_s=run.launcher.timeout_s,
        cases=cases,
        plan=None if cases else reduced_plan(run, machine),
        engine=run.engine,
    )
    return _run(run, spec)


def reduced_plan(run: RunConfig, machine: Machine) -> Plan:
    """The current model and layout on a small video whose guidance oscillates."""
    run.video = REDUCED
    distilled = run.model.mmdit.guidance_embed
    guidance = Guidance(STEPS, run.sampling.guidance, run.sampling.guidance_img, True, True, False, distilled)
    return make_plan(run, machine, [VideoRequest("0000_0", PROMPT, PROMPT, "", (), "t2v", 42, guidance)], __version__)


def _run(run: RunConfig, spec: VerifySpec) -> int:
    attempt = AttemptDir(Path(tempfile.mkdtemp(prefix="opensora-verify-")))
    attempt.make_folders()
    attempt.verify_spec.write_text(json.dumps(spec.to_dict()), encoding="utf-8")
    argv = command(run.launcher.kind, spec.machine, attempt, "--verify")
    env = environment(spec.threads_per_rank, profiled(os.environ, run.env).env, spec.machine.gpus)
    with progress() as show:
        outcome = supervise(Task(argv, env, attempt, spec.machine.ranks, spec.timeout_s), partial(show, attempt))
    if outcome.code > 128:
        shutil.rmtree(attempt)  # the user ended it: its logs tell nothing
        return outcome.code
    if outcome.code:
        said = failure_lines(outcome.failure, attempt) if outcome.failure else ()
        print("\n".join(said), file=sys.stderr)
        return outcome.code
    lines = [VerifyLine(**json.loads(text)) for text in attempt.verify_lines.read_text().splitlines()]
    for line in lines:
        print(line)
    shutil.rmtree(attempt)
    return 0 if all(line.ok for line in lines) else 1
