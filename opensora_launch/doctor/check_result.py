"""The results of `doctor`: one line per result, with the fix and its cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

NEXT_START = "no cost; takes effect at the next start"


class Level(StrEnum):
    ok = "ok"
    warn = "warn"  # a run works, but slower or with less memory than this machine could give
    fail = "fail"  # a run will not work


@dataclass(frozen=True)
class CheckResult:
    """What a check found. `cost` is what the fix takes: a restart, a reboot, root rights."""

    level: Level
    check: str  # short: "driver", "shm", "env"
    what: str
    fix: str = ""
    cost: str = ""
    host: str = ""  # set if several hosts were checked
    value: float | None = None  # measured
    unit: str = ""  # of `value`: "GiB free", "GB/s"


def ok(check: str, what: str) -> CheckResult:
    return CheckResult(Level.ok, check, what)


def warning(check: str, what: str, fix: str, cost: str) -> CheckResult:
    return CheckResult(Level.warn, check, what, fix, cost)


def failure(check: str, what: str, fix: str = "", cost: str = "") -> CheckResult:
    return CheckResult(Level.fail, check, what, fix, cost)


def bad_variable(what: str, fix: str, level: Level = Level.warn) -> CheckResult:
    """Report an environment variable that does harm."""
    return CheckResult(level, "env", what, fix, NEXT_START)


def with_free_bytes(result: CheckResult, count: int) -> CheckResult:
    """Add the number of free bytes as the measured value."""
    return replace(result, value=count / 2**30, unit="GiB free")


def lines(results: Sequence[CheckResult]) -> list[str]:
    """One aligned line per result: level, host if there are several, check, what, fix, cost."""
    several = len({result.host for result in results}) > 1
    check = max((len(result.check) for result in results), default=0)
    host = max((len(result.host) for result in results), default=0) if several else 0
    found = []
    for result in results:
        place = [f"{result.host:<{host}}"] if host else []
        text = "  ".join([f"{result.level.value:<4}", *place, f"{result.check:<{check}}", result.what])
        cost = f" ({result.cost})" if result.cost else ""
        found.append(text + (f"; fix: {result.fix}{cost}" if result.fix else ""))
    return found


def worst(results: Iterable[CheckResult]) -> Level:
    return max((result.level for result in results), key=list(Level).index, default=Level.ok)


def size_text(count: int | float) -> str:
    """Format a number of bytes for people."""
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
