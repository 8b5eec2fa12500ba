"""Read the files of a run. Missing ranks and failed attempts are read too, not refused."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.config import RunConfig
from opensora_launch.errors import UserError
from opensora_launch.plan.codec import decode
from opensora_launch.plan.plan import Plan
from opensora_launch.report.wording import Message, message
from opensora_launch.telemetry.events import RankEvents, read_events
from opensora_launch.telemetry.failure import Failure, read_failure
from opensora_launch.telemetry.samples import NodeSamples, read_samples

REPORT_SCHEMA = 4
READABLE = (3, 4)  # 3 has texts where 4 has messages; what baselines and comparisons need is the same


@dataclass(frozen=True)
class AttemptRecord:
    number: int
    command: str | None
    plan: Plan
    events: tuple[RankEvents, ...]  # by rank; a rank may have left none
    failure: Failure | None
    nodes: tuple[NodeSamples, ...] = ()
    environment: Mapping[str, Any] | None = None  # environment.json: the profile's changes, and the ranks' variables

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        here = {e.meta.rank for e in self.events}
        return tuple(r for r in range(self.plan.machine.ranks) if r not in here)

    @property
    def status(self) -> str:
        """complete (every rank finished), failed (error.json says how) or stopped (the reason is unknown)."""
        if self.failure is not None:
            return "failed"
        whole = not self.missing_ranks and all(e.end is not None for e in self.events)
        return "complete" if whole else "stopped"


@dataclass(frozen=True)
class VideoRecord:
    name: str
    prompt: str
    seed: int
    files: tuple[str, ...]  # relative to the run; empty if it is not finished


@dataclass(frozen=True)
class RunRecord:
    name: str
    command: str | None
    plan: Plan
    attempts: tuple[AttemptRecord, ...]
    videos: tuple[VideoRecord, ...]
    config: RunConfig | None = None
    unknown: tuple[Message, ...] = ()  # about damaged files


def read_run_record(run_dir: Path) -> RunRecord:
    """Read everything that a report needs; UserError if `run_dir` is no run."""
    plan = _read_plan(run_dir / "plan.json")
    folders = [p for p in (run_dir / "attempts").glob("*") if p.name.isdigit() and (p / "plan.json").exists()]
    attempts = tuple(_read_attempt(p) for p in sorted(folders, key=lambda p: int(p.name)))
    words = _read_overrides(run_dir / "overrides.json")
    damaged = words is None and (run_dir / "overrides.json").exists()
    return RunRecord(
        name=run_dir.resolve().name,
        command=None if words is None else _command(run_dir, words),
        plan=plan,
        attempts=attempts,
        videos=_videos(run_dir, plan),
        config=_config(run_dir),
        unknown=(message("command_unknown"),) if damaged else (),
    )


def read_report(path: Path) -> dict[str, Any]:
    """Read another run's report by its folder or its file; UserError if this version cannot read one there."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = report["schema"]
        whole = all(isinstance(report.get(name), dict) for name in ("work", "machine")) and "times" in report
        if schema in READABLE and not whole:
            raise ValueError("work, machine or times are missing")
    except FileNotFoundError as error:
        raise UserError(f"{path} has no report.json; make it with: opensora-launch report {path}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is not the report of a run: {error}") from error
    if schema not in READABLE:
        read = " and ".join(map(str, READABLE))
        raise UserError(f"{file} has schema {schema}; this version reads {read}: make the report again with it")
    return report


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is not a run's folder: it has no plan.json") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _read_attempt(folder: Path) -> AttemptRecord:
    found = [read_events(p) for p in (folder / "telemetry").glob("rank*.jsonl")]
    return AttemptRecord(
        number=int(folder.name),
        command=_read_text(folder / "command.txt"),
        plan=_read_plan(folder / "plan.json"),
        events=tuple(sorted((e for e in found if e), key=lambda e: e.meta.rank)),
        failure=read_failure(folder),
        nodes=tuple(n for p in sorted((folder / "telemetry").glob("node-*.jsonl")) if (n := read_samples(p))),
        environment=_environment(folder / "environment.json"),
    )


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _read_overrides(path: Path) -> list[str] | None:
    """Read the user's command line, without prompts; None where the file is missing or damaged."""
    found = _json(path)
    return found if isinstance(found, list) and all(isinstance(word, str) for word in found) else None


def _command(run_dir: Path, words: Sequence[str]) -> str:
    """The command that makes the run again: its prompts.jsonl is a prompt file too, and has the seeds."""
    prompts = run_dir.resolve() / "prompts.jsonl"
    again = ["--prompts", str(prompts)] if prompts.exists() else []
    return shlex.join(["opensora-launch", "generate", *words, *again])


def _environment(path: Path) -> dict[str, Any] | None:
    """Read environment.json; None unless it is what the launcher writes."""
    found = _json(path)
    if not isinstance(found, dict):
        return None
    parts = {name: found.get(name, {}) for name in ("set", "taken_away", "kept", "environment")}
    whole = all(isinstance(part, dict) and all(isinstance(v, str) for v in part.values()) for part in parts.values())
    return {"profile": str(found.get("profile", "")), **parts} if whole else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _videos(run_dir: Path, plan: Plan) -> tuple[VideoRecord, ...]:
    """A video is finished when its JSON file exists, which is written last."""
    folder = run_dir / "samples"
    videos = []
    for video in plan.videos:
        done = (folder / f"{video.name}.json").exists()
        files = sorted(
            f"samples/{video.name}{end}" for end in (".mp4", ".png") if (folder / f"{video.name}{end}").exists()
        )
        videos.append(VideoRecord(video.name, video.prompt, video.seed, tuple(files) if done else ()))
    return tuple(videos)


def _config(run_dir: Path) -> RunConfig | None:
    """The config that the run was made from; None where this version cannot read it."""
    import yaml

    try:
        found: RunConfig = decode(RunConfig, yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return None
    return found
