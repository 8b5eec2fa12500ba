"""`error.json` of an attempt: the first failure of any rank, and only that one."""

import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from opensora_launch.telemetry.typed import fits

KINDS = ("user", "failure", "stalled", "memory")
NAME = "error.json"


@dataclass(frozen=True)
class Failure:
    rank: int
    host: str
    kind: str  # "user" is the user's to mend (exit code 2); "failure", "stalled" and "memory" are not (exit code 1)
    message: str
    phase: str | None = None
    step: int | None = None
    collective: str | None = None
    traceback: str | None = None
    time_s: float = field(default_factory=time.time)


def record_failure(attempt_dir: Path, failure: Failure) -> bool:
    """Write `error.json` unless it is there; True if this failure was the first.

    The file appears whole or not at all: a hard link is made to a finished file. Where the file system has no links
    it is created exclusively and then written.
    """
    assert failure.kind in KINDS, failure.kind
    text = json.dumps(asdict(failure), ensure_ascii=False, indent=1)
    aside = attempt_dir / f".{NAME}.{failure.host}.{os.getpid()}.{threading.get_ident()}"
    target = attempt_dir / NAME
    aside.write_text(text, encoding="utf-8")
    try:
        os.link(aside, target)
    except FileExistsError:
        return False
    except OSError:
        return _create(target, text)
    finally:
        aside.unlink(missing_ok=True)
    return True


def _create(target: Path, text: str) -> bool:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def read_failure(attempt_dir: Path) -> Failure | None:
    """The first failure of the attempt; None if there is none, or none that can be read."""
    try:
        data = json.loads((attempt_dir / NAME).read_text(encoding="utf-8"))
        failure = Failure(**{f.name: data[f.name] for f in fields(Failure) if f.name in data})
        return failure if fits(failure) else None
    except (OSError, ValueError, TypeError):
        return None
