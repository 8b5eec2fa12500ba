"""What of a run lies in its files. Ranks may be missing, attempts may have failed: that is read too, not refused."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.config import RunConfig
from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Plan
from opensora_launch.report.cards import read_config
from opensora_launch.telemetry.events import RankEvents, read_events
from opensora_launch.telemetry.failure import Failure, read_failure
from opensora_launch.telemetry.samples import NodeSamples, read_samples

SCHEMA = 2  # of report.json


@dataclass(frozen=True)
class Attempt:
    number: int
    command: str | None
    plan: Plan
    events: tuple[RankEvents, ...]  # of the ranks that left some, by rank
    failure: Failure | None
    nodes: tuple[NodeSamples, ...] = ()

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


def read_run(run_dir: Path) -> Run:
    """All of a run directory that a report needs; UserError if it is none."""
    plan = _read_plan(run_dir / "plan.json")
    folders = [p for p in (run_dir / "attempts").glob("*") if p.name.isdigit() and (p / "plan.json").exists()]
    attempts = tuple(_read_attempt(p) for p in sorted(folders, key=lambda p: int(p.name)))
    return Run(
        name=run_dir.resolve().name,
        command=_read_command(run_dir / "overrides.json"),
        plan=plan,
        attempts=attempts,
        samples=_samples(run_dir, plan),
        config=read_config(run_dir),
    )


def read_report(path: Path) -> dict[str, Any]:
    """The report of another run, by its folder or its file; UserError where there is none that this version reads."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = report["schema"]
    except FileNotFoundError as error:
        raise UserError(f"baseline {path} has no report.json; make it with: opensora-launch report {path}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"baseline {file} is no report: {error}") from error
    if schema != SCHEMA:
        raise UserError(f"baseline {file} has schema {schema}; make it anew with this version, which writes {SCHEMA}")
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
        failure=read_failure(folder),
        nodes=tuple(n for p in sorted((folder / "telemetry").glob("node-*.jsonl")) if (n := read_samples(p))),
    )


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _read_command(path: Path) -> str | None:
    """The user's command line, without prompts."""
    if not path.exists():
        return None
    return shlex.join(["opensora-launch", "generate", *json.loads(path.read_text(encoding="utf-8"))])


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
