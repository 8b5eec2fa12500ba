"""Write a run's folder and the folders of its attempts, with their command or batch script, before any rank starts."""

import json
import math
import re
import shlex
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.launch.command import command, command_text, environment, without_others
from opensora_launch.launch.env_profile import Profiled
from opensora_launch.plan.first_frames import image_run
from opensora_launch.plan.make_plan import predict
from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.rundir import AttemptDir, RunDir, make_empty_folder, make_folder, write_whole
from opensora_launch.schema.config import LauncherKind, RunConfig
from opensora_launch.schema.plain import config_yaml
from opensora_launch.schema.slurm import SlurmConfig
from opensora_launch.slurm.script import SlurmJob, job_script

SLUG_CHARS = 40
BY_HAND = "by hand"  # the environment profile of ranks that the launcher did not start


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder records of the request."""

    config: RunConfig
    argv: Sequence[str]  # flags and overrides that make the same config again; prompts are not part of it
    prompts: Sequence[Mapping[str, Any]]  # the lines of prompts.jsonl
    videos: Sequence[VideoRequest]  # all of them, those too that the first attempt leaves out


def write_run(folder: Path | None, now: datetime, record: RunRecord, plan: Plan) -> RunDir:
    """Write everything but attempts into `folder`, or into a new runs_dir/<stamp>-<slug of the first prompt>."""
    text = str(record.prompts[0]["text"]) if record.prompts else ""
    name = "-".join(filter(None, [now.strftime("%Y%m%d-%H%M%S"), slug(text)]))
    run = RunDir(make_empty_folder(folder) if folder else make_folder(Path(record.config.runs_dir), name))
    try:
        run.samples.mkdir()  # only one run can
    except FileExistsError as error:
        raise UserError(f"--output {run}: another run has taken this folder meanwhile") from error
    if plan.images:
        run.images.samples.mkdir(parents=True)
    write_whole(run.config, config_yaml(record.config))
    write_whole(run.overrides, _json(list(record.argv)))
    write_whole(run.prompts, "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in record.prompts))
    write_whole(run.plan, _json(asdict(replace(plan, videos=tuple(record.videos)))))
    return run


def slug(text: str) -> str:
    """A text as part of a folder's name: its ASCII letters and digits in small letters, "a-red-circle".

    Accents are dropped. The whole words that fit into SLUG_CHARS are kept. A text without ASCII letters has none.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    whole = "-".join(re.findall("[a-z0-9]+", plain.replace("'", "")))
    if not re.search("[a-z]", whole):
        return ""
    cut = whole[:SLUG_CHARS]
    return cut if whole[SLUG_CHARS:][:1] in ("", "-") else cut.rpartition("-")[0] or cut


def new_attempt(run_dir: RunDir, plan: Plan, kind: LauncherKind, made: Profiled) -> AttemptDir:
    """Make the folder of the next attempt, with its plan, its command and the environment of its ranks."""
    attempt = _attempt_folder(run_dir, plan)
    ranks_env = made.env
    if made.profile != BY_HAND:
        ranks_env = environment(plan.threads_per_rank, without_others(made.env, kind), plan.machine.gpus)
    write_whole(attempt.environment, made.to_json(ranks_env))
    if kind is LauncherKind.slurm:
        text = f"sbatch {shlex.quote(str(attempt.batch_script))}\n"
    else:
        text = command_text(command(kind, plan.machine, attempt), plan, made)
    write_whole(attempt.command, text)
    return attempt


def attempt_like(other: AttemptDir, plan: Plan) -> AttemptDir:
    """Make another attempt of the same run, which the same command starts in the same environment."""
    attempt = _attempt_folder(other.run, plan)
    for source, copy in ((other.command, attempt.command), (other.environment, attempt.environment)):
        if source.exists():
            write_whole(copy, source.read_text(encoding="utf-8"))
    return attempt


def _attempt_folder(run: RunDir, plan: Plan) -> AttemptDir:
    """Make run/attempts/<k> for the next free k, and write the plan of what is still missing into it."""
    run.attempts_folder.mkdir(exist_ok=True)
    number = max((attempt.number for attempt in run.attempts()), default=-1) + 1
    while True:
        attempt = run.attempt(number)
        try:
            attempt.path.mkdir()
            break
        except FileExistsError:
            number += 1
    attempt.make_folders()
    write_whole(attempt.plan, _json(asdict(plan)))
    return attempt


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


TIME_MARGIN, START_MINUTES = 1.5, 15
MEMORY_MARGIN, RANK_GIB = 1.25, 8


def script_of(run: RunConfig, plan: Plan, attempt: AttemptDir, made: Profiled) -> str:
    """The batch script of an attempt."""
    settings = with_prediction(run, plan)
    env = made.was_set | ({"HEAD_ADDRESS": settings.head_address} if settings.head_address else {})
    python, taken = settings.python or sys.executable, tuple(made.taken)
    return job_script(SlurmJob(settings, plan.machine, plan.threads_per_rank, attempt.path, python, env, taken))


def array_tasks(run: RunConfig, plan: Plan) -> int:
    """The tasks of the array: never more than there are batches to take."""
    return max(1, min(run.launcher.slurm.array, len(plan.batches)))


def with_prediction(run: RunConfig, plan: Plan) -> SlurmConfig:
    """Cut the array to what is useful. Fill in time and memory where they are null and the card is known.

    They are the prediction, with a margin. Host memory also holds what each rank needs for itself: CUDA's context,
    Python and its buffers.
    """
    settings, machine = replace(run.launcher.slurm, array=array_tasks(run, plan)), plan.machine
    if machine.device != "cuda" or not run.hardware.known:
        return settings
    if plan.videos:
        _, found = predict(run, machine, plan.videos)
    else:  # images alone
        assert plan.images
        _, found = predict(image_run(run), machine, plan.images.videos)
    chosen = next((option for option in found if option.layouts == plan.layouts), found[0])
    minutes = math.ceil(TIME_MARGIN * chosen.phases.total / 60 / settings.array) + START_MINUTES
    gib = math.ceil(MEMORY_MARGIN * chosen.memory.host / 2**30) + RANK_GIB * machine.gpus_per_node
    return replace(settings, time=settings.time or str(minutes), mem=settings.mem or f"{gib}G")
