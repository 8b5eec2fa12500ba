"""The command that makes one video of a run again, on any machine."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from opensora_launch.plan.plan import VideoRequest
from opensora_launch.rundir import RunDir

# What decides a video but for rounding. Other keys say where and how it is computed.
KEYS = ("model", "image", "video", "sampling", "precision", "numerics", "attention", "compile", "engine")
STORAGE = "placement.storage"


def remake_command(run: RunDir, video: VideoRequest) -> str | None:
    """Return the command; None if the run's folder does not hold its command line and prompts."""
    try:
        words: list[str] = json.loads(run.overrides.read_text(encoding="utf-8"))
        lines = map(json.loads, run.prompts.read_text(encoding="utf-8").splitlines())
        line: Mapping[str, Any] = next(line for line in lines if video.name in line["videos"])
        own = {f"sampling.{key}": value for key, value in line["settings"].items()}
        own |= {"sampling.seed": video.seed, "sampling.num_samples": 1}
        flags, before = _split(words)
        last = [*line.get("overrides", ()), *(f"{key}={value}" for key, value in own.items())]
        every = {_key(word): word for word in (*before, *last)}
        kept = {key: word for key, word in every.items() if key == STORAGE or key.partition(".")[0] in KEYS}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StopIteration):
        return None
    refs = [word for ref in video.refs for word in ("--ref", ref)]
    defaults = {"sampling.num_samples": "1"}
    overrides = [word for key, word in kept.items() if word != f"{key}={defaults.get(key)}"]
    prompt = video.prompt if video.refined is None else video.refined  # it is not refined again
    return shlex.join(["opensora-launch", "generate", *flags, *overrides, "--prompt", prompt, *refs])


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags that decide a video, each with its value, and the overrides of a command line."""
    flags, overrides, left = list[str](), list[str](), iter(words)
    for word in left:
        if not word.startswith("--"):
            overrides.append(word)
        elif (pair := [word, next(left)])[0] != "--name":
            flags += pair
    return flags, overrides


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")
