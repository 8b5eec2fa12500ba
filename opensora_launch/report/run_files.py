"""What of a run lies in its files. Ranks may be missing, attempts may have failed: that is read too, not refused."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Plan
from opensora_launch.report.cards import read_config
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import RunConfig
from opensora_launch.telemetry.events import RankEvents, read_events
from opensora_launch.telemetry.failure import Failure, read_failure
from opensora_launch.telemetry.samples import NodeSamples, read_samples

SCHEMA = 3  # of report.json


@dataclass(frozen=True)
class Attempt:
    number: int
    command: str | None
    plan: Plan
    events: tuple[RankEvents, ...]  # of the ranks that left some, by rank
    failure: Failure | None
    nodes: tuple[NodeSamples, ...] = ()
    environment: Mapping[str, Any] | None = None  # environment.json: what the profile changed, and what ranks saw

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        here = {e.meta.rank for e in self.events}
        return tuple(r for r in range(self.plan.machine.ranks) if r not in here)

    @property
    def status(self) -> str:
        """complete (every rank came to its end), failed (error.json says how) or stopped (nobody knows why)."""
        if self.failure is not None:
            return "failed"
        whole = not self.missing_ranks and all(e.end is not None for e in self.events)
        return "complete" if whole else "stopped"


@dataclass(frozen=True)
class Sample:
    name: str
    prompt: str
    seed: int
    files: tuple[str, ...]  # relative to the run; none where it is not finished


@dataclass(frozen=True)
class Run:
    name: str
    command: str | None
    plan: Plan
    attempts: tuple[Attempt, ...]
    samples: tuple[Sample, ...]
    config: RunConfig | None = None
    unknown: tuple[str, ...] = ()  # files that are torn


def read_run(run_dir: Path) -> Run:
    """All of a run directory that a report needs; UserError if it is none."""
    plan = _read_plan(run_dir / "plan.json")
    folders = [p for p in (run_dir / "attempts").glob("*") if p.name.isdigit() and (p / "plan.json").exists()]
    attempts = tuple(_read_attempt(p) for p in sorted(folders, key=lambda p: int(p.name)))
    words = _words(run_dir / "overrides.json")
    torn = words is None and (run_dir / "overrides.json").exists()
    return Run(
        name=run_dir.resolve().name,
        command=None if words is None else _command(run_dir, words),
        plan=plan,
        attempts=attempts,
        samples=_samples(run_dir, plan),
        config=read_config(run_dir),
        unknown=("overrides.json cannot be read, so the command is not known",) if torn else (),
    )


def read_report(path: Path) -> dict[str, Any]:
    """The report of another run, by its folder or its file; UserError where there is none that this version reads."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = report["schema"]
        whole = all(isinstance(report.get(name), dict) for name in ("work", "machine")) and "times" in report
        if schema == SCHEMA and not whole:
            raise ValueError("work, machine or times are missing")
    except FileNotFoundError as error:
        raise UserError(f"{path} has no report.json; make it with: opensora-launch report {path}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is no report of a run: {error}") from error
    if schema != SCHEMA:
        raise UserError(f"{file} has schema {schema}; make it anew with this version, which writes {SCHEMA}")
    return report


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is no run directory: it has no plan.json") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _read_attempt(folder: Path) -> Attempt:
    found = [read_events(p) for p in (folder / "telemetry").glob("rank*.jsonl")]
    return Attempt(
        number=int(folder.name),
        command=_read_text(folder / "command.txt"),
        plan=_read_plan(folder / "plan.json"),
        events=tuple(sorted((e for e in found if e), key=lambda e: e.meta.rank)),
        failure=read_failure(AttemptDir(folder)),
        nodes=tuple(n for p in sorted((folder / "telemetry").glob("node-*.jsonl")) if (n := read_samples(p))),
        environment=_environment(folder / "environment.json"),
    )


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _words(path: Path) -> list[str] | None:
    """The user's command line, without prompts; None where the file is missing or torn."""
    found = _json(path)
    return found if isinstance(found, list) and all(isinstance(word, str) for word in found) else None


def _command(run_dir: Path, words: Sequence[str]) -> str:
    """That makes the run again: its prompts.jsonl is a prompt file too, and has the seeds."""
    prompts = run_dir.resolve() / "prompts.jsonl"
    again = ["--prompts", str(prompts)] if prompts.exists() else []
    return shlex.join(["opensora-launch", "generate", *words, *again])


def _environment(path: Path) -> dict[str, Any] | None:
    """What environment.json says, as far as it is what the launcher writes."""
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


def _samples(run_dir: Path, plan: Plan) -> tuple[Sample, ...]:
    """A video is finished when its JSON is there, which is written last."""
    folder = run_dir / "samples"
    samples = []
    for video in plan.videos:
        done = (folder / f"{video.name}.json").exists()
        files = sorted(
            f"samples/{video.name}{end}" for end in (".mp4", ".png") if (folder / f"{video.name}{end}").exists()
        )
        samples.append(Sample(video.name, video.prompt, video.seed, tuple(files) if done else ()))
    return tuple(samples)
