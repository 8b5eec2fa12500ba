"""Read the files of a run. Missing ranks and failed attempts are read too, not refused."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Plan
from opensora_launch.report.wording import Message, message
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.files import previews_of
from opensora_launch.runs.finished_videos import failed_videos, sample_file
from opensora_launch.runs.state import Launched, name_of_stop
from opensora_launch.runs.waited import Waited, read_waited
from opensora_launch.schema.config import RunConfig
from opensora_launch.telemetry.events import RankEvents, read_events
from opensora_launch.telemetry.failure import Failure, read_failure
from opensora_launch.telemetry.lines import read_json
from opensora_launch.telemetry.samples import NodeSamples, read_samples

REPORT_SCHEMA = 5
READABLE_REPORTS = (3, 4, 5)  # 3 has texts where 4 has messages; what baselines and comparisons need is the same


@dataclass(frozen=True)
class RecordedEnvironment:
    """environment.json: the profile's changes, and the ranks' variables."""

    profile: str | None = None
    set: Mapping[str, str] = field(default_factory=dict)
    taken_away: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedAttempt:
    number: int
    command: str | None
    plan: Plan
    events: tuple[RankEvents, ...]  # by rank; a rank may have left none
    failure: Failure | None
    nodes: tuple[NodeSamples, ...] = ()
    environment: RecordedEnvironment | None = None
    stopped_by: str = ""  # Ctrl-C, a signal, or `cancel`
    waited: Waited | None = None

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        here = {e.meta.rank for e in self.events}
        return tuple(r for r in range(self.plan.machine.ranks) if r not in here)

    @property
    def status(self) -> str:
        """complete (every rank finished), failed (error.json says how) or stopped (`stopped_by` may say by whom)."""
        if self.failure is not None:
            return "failed"
        whole = not self.missing_ranks and all(e.end is not None for e in self.events)
        return "complete" if whole else "stopped"


@dataclass(frozen=True)
class RecordedRun:
    name: str
    command: str | None
    plan: Plan
    attempts: tuple[RecordedAttempt, ...]
    videos: tuple[dict[str, Any], ...]  # the samples of the report
    config: RunConfig | None = None
    previews: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of each video, relative to the run, by step
    unknown: tuple[Message, ...] = ()  # about damaged files


def read_recorded_run(folder: RunDir) -> RecordedRun:
    """Read everything that a report needs; UserError if `folder` is not a run."""
    plan = _read_plan(folder.plan)
    command = _command(folder)
    damaged = command is None and folder.overrides.exists()
    return RecordedRun(
        name=folder.path.resolve().name,
        command=command,
        plan=plan,
        attempts=tuple(_read_attempt(attempt) for attempt in folder.attempts() if attempt.plan.exists()),
        videos=_videos(folder, plan),
        config=_config(folder),
        previews={
            name: [str(p.relative_to(folder.path)) for p in files] for name, files in previews_of(folder).items()
        },
        unknown=(message("command_unknown"),) if damaged else (),
    )


def read_report(path: Path) -> dict[str, Any]:
    """Read another run's report by its folder or its file; UserError if this version cannot read one there."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = report["schema"]
        whole = all(isinstance(report.get(name), dict) for name in ("work", "machine")) and "times" in report
        if schema in READABLE_REPORTS and not whole:
            raise ValueError("work, machine or times are missing")
    except FileNotFoundError as error:
        raise UserError(f"{path} has no report.json; make it with: opensora-launch report {path}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is not the report of a run: {error}") from error
    if schema not in READABLE_REPORTS:
        read = ", ".join(map(str, READABLE_REPORTS))
        raise UserError(f"{file} has schema {schema}; this version reads {read}: make the report again with it")
    return report


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is not a run's folder: it has no plan.json") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _read_attempt(folder: AttemptDir) -> RecordedAttempt:
    found = [read_events(path) for path in folder.all_events()]
    return RecordedAttempt(
        number=folder.number,
        command=folder.command.read_text(encoding="utf-8").strip() if folder.command.exists() else None,
        plan=_read_plan(folder.plan),
        events=tuple(sorted((e for e in found if e), key=lambda e: e.meta.rank)),
        failure=read_failure(folder),
        nodes=tuple(n for path in folder.all_samples() if (n := read_samples(path))),
        environment=read_json(folder.environment, RecordedEnvironment),
        stopped_by=name_of_stop(launched.ended) if (launched := read_json(folder.launcher, Launched)) else "",
        waited=read_waited(folder),
    )


def _command(folder: RunDir) -> str | None:
    """The command that makes the run again: its prompts.jsonl is a prompt file too, and has the seeds."""
    overrides = read_json(folder.overrides, list)
    if overrides is None or not all(isinstance(word, str) for word in overrides):
        return None
    prompts = folder.prompts.resolve()
    again = ["--prompts", str(prompts)] if prompts.exists() else []
    return shlex.join(["opensora-launch", "generate", *overrides, *again])


def _videos(folder: RunDir, plan: Plan) -> tuple[dict[str, Any], ...]:
    """What the report says about each video. Paths are relative to the run.

    `files` is empty if it is not finished, `sheet` its contact sheet, `failure` why it could not be made while others
    could, `image` its first frame that was made by image=.
    """
    videos, failed = [], failed_videos(folder)
    for video in plan.videos:
        file = sample_file(folder, video.name)
        sheet, image = folder.sheet(video.name), sample_file(folder.images, video.name) if video.image else None
        videos.append(
            {
                "name": video.name,
                "prompt": video.prompt,
                "seed": video.seed,
                "files": [f"{folder.samples.name}/{file.name}"] if file else [],
                "fps": plan.geometry.fps,
                "num_steps": video.guidance.num_steps,
                "guidance": video.guidance.text_scale,
                "cond_type": video.cond_type,
                "sheet": f"{folder.samples.name}/{sheet.name}" if file and sheet.exists() else None,
                "failure": failed.get(video.name),
                "image": str(image.relative_to(folder.path)) if image else None,
            }
        )
    return tuple(videos)


def _config(folder: RunDir) -> RunConfig | None:
    """The config that the run was made from; None where this version cannot read it."""
    import yaml

    try:
        return msgspec.convert(yaml.safe_load(folder.config.read_text(encoding="utf-8")), RunConfig)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError):
        return None
