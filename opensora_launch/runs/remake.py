"""The command that makes one video of a run again, on any machine."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from opensora_launch.plan.plan import VideoRequest
from opensora_launch.rundir import RunDir

# What decides a video but for rounding. Other keys say where and how it is computed.
KEYS = ("model", "image", "video", "sampling", "precision", "numerics", "attention", "engine")
STORAGE = "placement.storage"


def remake_command(run: RunDir, video: VideoRequest) -> str | None:
    """Return the command; None if the run's folder does not hold its command line and prompts."""
    try:
        words: list[str] = json.loads(run.overrides.read_text(encoding="utf-8"))
        lines = map(json.loads, run.prompts.read_text(encoding="utf-8").splitlines())
        line: Mapping[str, Any] = next(line for line in lines if video.name in line["videos"])
        own = {f"sampling.{key}": value for key, value in line["settings"].items()}
        own |= {"sampling.seed": video.seed, "sampling.num_samples": 1}
        last = [*line.get("overrides", ()), *(f"{key}={value}" for key, value in own.items())]
        kept = {_key(word): word for word in (*words, *last) if _decides(word)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StopIteration):
        return None
    refs = [word for ref in video.refs for word in ("--ref", ref)]
    defaults = {"sampling.num_samples": "1"}
    overrides = [word for key, word in kept.items() if word != f"{key}={defaults.get(key)}"]
    return shlex.join(["opensora-launch", "generate", *overrides, "--prompt", video.prompt, *refs])


def _key(word: str) -> str:
    """Return what a word sets; a flag or its value stands for itself."""
    return word.partition("=")[0].lstrip("+") if not word.startswith("-") else word


def _decides(word: str) -> bool:
    key = _key(word)
    return word.startswith("-") or "=" not in word or key == STORAGE or key.partition(".")[0] in KEYS
