"""What `doctor` says: one finding a line, with what to do about it and what that costs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    ok = "ok"
    warn = "warn"  # it runs, slower or with less room than this machine could give
    fail = "fail"  # it will not run


@dataclass(frozen=True)
class Finding:
    """`cost` is what the fix takes: a restart, a reboot, somebody with root. `value` is what was measured."""

    level: Level
    check: str  # short: "driver", "shm", "env"
    what: str
    fix: str = ""
    cost: str = ""
    host: str = ""  # where several were looked at
    value: float | None = None
    unit: str = ""  # of `value`: "GiB free", "GB/s"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "level": self.level.value}


def ok(check: str, what: str) -> Finding:
    return Finding(Level.ok, check, what)


def free(finding: Finding, count: int) -> Finding:
    """With the bytes that are free as its value."""
    return replace(finding, value=count / 2**30, unit="GiB free")


def lines(findings: Sequence[Finding]) -> list[str]:
    """One aligned line a finding: level, host where there are several, check, what, fix, cost."""
    several = len({f.host for f in findings}) > 1
    check = max((len(f.check) for f in findings), default=0)
    host = max((len(f.host) for f in findings), default=0) if several else 0
    return [_line(f, host, check) for f in findings]


def _line(finding: Finding, host: int, check: int) -> str:
    parts = [f"{finding.level.value:<4}", *([f"{finding.host:<{host}}"] if host else []), f"{finding.check:<{check}}"]
    text = "  ".join([*parts, finding.what])
    if finding.fix:
        text += f"; fix: {finding.fix}" + (f" ({finding.cost})" if finding.cost else "")
    return text


def worst(findings: Iterable[Finding]) -> Level:
    order = list(Level)
    return max((f.level for f in findings), key=order.index, default=Level.ok)


def gib(count: int | float) -> str:
    """Bytes for people."""
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
