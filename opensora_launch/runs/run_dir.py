"""The run directory: what a run was asked to make, and what of it is there. See docs/cli.md for the files."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from opensora_launch.schema.config import (RunConfig)
from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Plan, VideoRequest

T = TypeVar("T")
COMMAND, ENVIRONMENT = "command.txt", "environment.json"  # of an attempt: what has started its ranks, and in what


@dataclass(frozen=True)
class RunRecord:
    """What is written of a request: its config, the command line that makes it again, its prompts."""

    config: RunConfig
    argv: Sequence[str]  # flags and overrides, without the prompts
    prompts: Sequence[Mapping[str, Any]]  # one a line of prompts.jsonl


def write_run(runs_dir: Path, now: datetime, record: RunRecord, plan: Plan) -> Path:
    """Make runs_dir/<stamp> with everything but attempts; a taken stamp gets -2, -3, ..."""
    run = make_folder(runs_dir, now.strftime("%Y%m%d-%H%M%S"))
    (run / "samples").mkdir()
    write_whole(run / "config.yaml", config_yaml(record.config))
    write_whole(run / "overrides.json", _json(list(record.argv)))
    write_whole(run / "prompts.jsonl", "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in record.prompts))
    write_whole(run / "plan.json", _json(plan.to_dict()))
    return run


def write_attempt(run: Path, plan: Plan) -> Path:
    """Make run/attempts/<k> for the next free k, with the plan of what is still missing."""
    attempts = run / "attempts"
    attempts.mkdir(exist_ok=True)
    k = max((int(p.name) for p in attempts.iterdir() if p.name.isdigit()), default=-1) + 1
    while True:
        attempt = attempts / str(k)
        try:
            attempt.mkdir()
            break
        except FileExistsError:
            k += 1
    for name in ("logs", "heartbeat", "telemetry"):
        (attempt / name).mkdir()
    write_whole(attempt / "plan.json", _json(plan.to_dict()))
    return attempt


def attempt_like(other: Path, plan: Plan) -> Path:
    """A new attempt of the same run that the same script starts: by the same command, in the same environment."""
    attempt = write_attempt(other.parent.parent, plan)
    for name in (COMMAND, ENVIRONMENT):
        if (other / name).exists():
            write_whole(attempt / name, (other / name).read_text(encoding="utf-8"))
    return attempt


def read_run(run: Path) -> tuple[Plan, dict[str, Any], list[str]]:
    """The plan, the config and the command line of a run; UserError if this is no run's folder."""
    plan = read_plan(run / "plan.json")
    return plan, _read(run / "config.yaml", _yaml), _read(run / "overrides.json", _words)


def read_plan(path: Path) -> Plan:
    """The plan of a run or an attempt; UserError if there is none that this version reads."""
    return _read(path, lambda text: Plan.from_dict(json.loads(text)))


def _read(path: Path, parse: Callable[[str], T]) -> T:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is not a run's folder: there is no {path.name}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _words(text: str) -> list[str]:
    words = json.loads(text)
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ValueError("it is no list of words")
    return words


def _yaml(text: str) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(config, dict):
        raise ValueError("it holds no keys")
    return config


def missing_videos(run: Path, videos: Sequence[VideoRequest]) -> tuple[VideoRequest, ...]:
    """Those without samples/NAME.json, which is written last and so is the record of completion."""
    return tuple(video for video in videos if not (run / "samples" / f"{video.name}.json").exists())


def sample_files(run: Path, videos: Sequence[VideoRequest]) -> list[Path]:
    """The finished pictures of these videos."""
    files = sorted(p for p in (run / "samples").glob("*") if p.suffix in (".mp4", ".png"))
    done = {v.name for v in videos if (run / "samples" / f"{v.name}.json").exists()}
    return [path for path in files if path.stem in done]


def cut_prompts(run: Path, videos: Sequence[VideoRequest]) -> list[str]:
    """A line for each of these videos whose prompt was longer than the text encoder takes."""
    said = []
    for video in videos:
        try:
            cut = json.loads((run / "samples" / f"{video.name}.json").read_text(encoding="utf-8"))["cut_tokens"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        said += [f"{video.name}: the last {cut} tokens of its prompt do not fit and are not seen"] if cut else []
    return said


def config_yaml(config: RunConfig) -> str:
    """The config as YAML that any reader takes literally: texts may hold ${...}."""
    import yaml

    return str(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=120))


def plain(config: RunConfig) -> dict[str, Any]:
    """The config as dicts, lists and plain values."""
    return asdict(config, dict_factory=lambda items: {k: v.value if isinstance(v, Enum) else v for k, v in items})


def write_whole(path: Path, text: str) -> None:
    """Write aside, then rename: a reader sees all of it or nothing."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def make_folder(parent: Path, name: str) -> Path:
    """Make parent/name, or parent/name-2 and so on where it is taken."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise UserError(f"runs_dir={parent} cannot be written: {error.strerror}") from error
    raise UserError(f"{parent} holds a thousand runs of {name} already")
