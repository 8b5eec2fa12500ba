"""What lies in a run's folder: its request, its plans, and which videos are there."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.rundir import RunDir

T = TypeVar("T")


def read_run(run: RunDir) -> tuple[Plan, dict[str, Any], list[str]]:
    """The plan, the config and the command line of a run; UserError if this is no run's folder."""
    plan = read_plan(run.plan)
    return plan, _read(run.config, _yaml), _read(run.overrides, _words)


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


def missing_videos(run: RunDir, videos: Sequence[VideoRequest]) -> tuple[VideoRequest, ...]:
    """Those without samples/NAME.json, which is written last and so is the record of completion."""
    return tuple(video for video in videos if not run.record(video.name).exists())


def sample_files(run: RunDir, videos: Sequence[VideoRequest]) -> list[Path]:
    """The finished pictures of these videos."""
    files = sorted(p for p in run.samples.glob("*") if p.suffix in (".mp4", ".png"))
    done = {v.name for v in videos if run.record(v.name).exists()}
    return [path for path in files if path.stem in done]


def cut_prompts(run: RunDir, videos: Sequence[VideoRequest]) -> list[str]:
    """A line for each of these videos whose prompt was longer than the text encoder takes."""
    said = []
    for video in videos:
        try:
            cut = json.loads(run.record(video.name).read_text(encoding="utf-8"))["cut_tokens"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        said += [f"{video.name}: the last {cut} tokens of its prompt do not fit and are not seen"] if cut else []
    return said


def stored_steps(run_dir: RunDir) -> list[tuple[str, int]]:
    """(first video, steps done) of each batch that was stored on the way, from the heads of its checkpoints."""
    found = []
    for path in sorted(run_dir.checkpoints.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            found.append((path.stem, int(head["__metadata__"]["step"])))
        except (OSError, ValueError, KeyError, OverflowError, MemoryError):
            continue
    return found
