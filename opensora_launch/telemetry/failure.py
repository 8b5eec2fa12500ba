"""`error.json` of an attempt: the first failure of any rank, and only that one."""

import json
import time
from dataclasses import asdict, dataclass, field, fields

from opensora_launch.rundir import AttemptDir, create_once
from opensora_launch.telemetry.typed import fits

KINDS = ("user", "failure", "stalled", "memory")


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


def record_failure(attempt: AttemptDir, failure: Failure) -> bool:
    """Write `error.json` unless it is there; True if this failure was the first."""
    assert failure.kind in KINDS, failure.kind
    return create_once(attempt.error, json.dumps(asdict(failure), ensure_ascii=False, indent=1))


def read_failure(attempt: AttemptDir) -> Failure | None:
    """The first failure of the attempt; None if there is none, or none that can be read."""
    try:
        data = json.loads(attempt.error.read_text(encoding="utf-8"))
        failure = Failure(**{f.name: data[f.name] for f in fields(Failure) if f.name in data})
        return failure if fits(failure) else None
    except (OSError, ValueError, TypeError):
        return None
