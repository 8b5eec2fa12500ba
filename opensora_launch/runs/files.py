"""What a run's folder contains: its request, its plans, and how far its unfinished batches are stored."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.rundir import RunDir
from opensora_launch.telemetry.events import read_constant

_T = TypeVar("_T")


def read_request(run: RunDir) -> tuple[Plan, dict[str, Any], list[str]]:
    """The plan, the config and the command line of a run. Raises UserError if this is not a run's folder."""
    return read_plan(run.plan), _read(run.config, _yaml), _read(run.overrides, _words)


def read_plan(path: Path) -> Plan:
    """The plan of a run or an attempt. Raises UserError if there is none that this version can read."""
    return _read(path, lambda text: Plan.from_dict(json.loads(text)))


def _read(path: Path, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path.parent} is not a run's folder: it has no {path.name}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _words(text: str) -> list[str]:
    words = json.loads(text)
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ValueError("it is not a list of words")
    return words


def _yaml(text: str) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(config, dict):
        raise ValueError("it has no keys")
    return config


def cut_prompts(run: RunDir, videos: Sequence[VideoRequest]) -> list[str]:
    """One line per video whose prompt was longer than the text encoder accepts."""
    lines = []
    for video in videos:
        with suppress(OSError, ValueError, KeyError, TypeError):
            if cut := json.loads(run.record(video.name).read_text(encoding="utf-8"))["cut_tokens"]:
                ignored = "last token of its prompt does" if cut == 1 else f"last {cut} tokens of its prompt do"
                lines.append(f"{video.name}: the {ignored} not fit and {'is' if cut == 1 else 'are'} ignored")
    return lines


def constant_weights_lines(run: RunDir) -> list[str]:
    """One line per file whose weights are one number all over, as ranks found."""
    found = dict[str, set[str]]()
    for attempt in run.attempts():
        for constant in (each for path in attempt.all_events() for each in read_constant(path)):
            found.setdefault(constant.file, set()).update(constant.names)
    return [
        f"{file}: {len(names)} {'weight is' if len(names) == 1 else 'weights are'} one number all over, such as "
        f"{min(names)}; the file may be damaged: download it again"
        for file, names in found.items()
    ]


def stored_steps(run_dir: RunDir) -> list[tuple[str, int]]:
    """(first video, steps done) of each unfinished batch, from the heads of the checkpoints."""
    found = []
    for path in sorted(run_dir.checkpoints.glob("*.safetensors")):
        with suppress(OSError, ValueError, KeyError, OverflowError, MemoryError), path.open("rb") as file:
            head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            found.append((path.stem, int(head["__metadata__"]["step"])))
    return found


def previews_of(run: RunDir) -> dict[str, list[Path]]:
    """The images of each video that were made while it was denoised, by step."""
    found: dict[str, list[Path]] = {}
    for path in sorted(run.previews.glob("*/step*.png"), key=lambda path: (path.parent.name, int(path.stem[4:]))):
        found.setdefault(path.parent.name, []).append(path)
    return found


def newest_preview(run: RunDir) -> Path | None:
    """The image that was made last; None if there is none."""
    every = [path for paths in previews_of(run).values() for path in paths]
    return max(every, key=lambda path: path.stat().st_mtime, default=None)
