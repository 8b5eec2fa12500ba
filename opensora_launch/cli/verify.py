"""`opensora-launch verify`: compare N ranks with one rank, and with stored tensors."""

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

from opensora_launch import exit_codes
from opensora_launch.cli.ending import failure_lines
from opensora_launch.cli.terminal import print_errors
from opensora_launch.cli.view import progress
from opensora_launch.launch.command import command, environment, refuse_as_rank, without_others
from opensora_launch.launch.env_profile import profiled
from opensora_launch.launch.supervise import Task, supervise
from opensora_launch.plan.verify_spec import VerifyLine
from opensora_launch.request.flags import Parsed
from opensora_launch.request.verification import prepare_verify
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import LauncherKind


def verify_verb(parsed: Parsed) -> int:
    """Print one line per compared tensor. Exit code 0 if all agree, else 1."""
    refuse_as_rank(os.environ, "verify")
    asked = prepare_verify(parsed)
    print_errors(asked.notes)
    spec, attempt = asked.spec, AttemptDir(Path(tempfile.mkdtemp(prefix="opensora-verify-")))
    attempt.make_folders()
    attempt.verify_spec.write_text(json.dumps(asdict(spec)), encoding="utf-8")
    kind = asked.run.launcher.kind
    argv = command(kind, spec.machine, attempt, "--verify")
    base = without_others(profiled(os.environ, asked.run.env).env, kind)
    env = environment(spec.threads_per_rank, base, spec.machine.gpus)
    with progress() as show:
        task = Task(argv, env, attempt, spec.machine.ranks, spec.timeout_s, kind is LauncherKind.srun)
        outcome = supervise(task, partial(show, attempt))
    if outcome.code > exit_codes.BY_SIGNAL:
        shutil.rmtree(attempt)  # the user stopped it: its logs are of no use
        return outcome.code
    if outcome.code:
        print_errors(failure_lines(outcome.failure, attempt) if outcome.failure else [])
        return outcome.code
    lines = [VerifyLine(**json.loads(text)) for text in attempt.verify_lines.read_text(encoding="utf-8").splitlines()]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    shutil.rmtree(attempt)
    return exit_codes.DONE if all(line.ok for line in lines) else exit_codes.FAILURE
