"""Errors that are the user's to mend. Any other failure is ours, and is an `assert`.

Checks return lines to show: what was asked, why not, what instead. They are collected, so that a user
sees every problem at once and not only the first.
"""

from collections.abc import Sequence


class UserError(Exception):
    """What a user asked for cannot be done. The command line prints it without a traceback, exit code 2."""

    def __init__(self, title: str, problems: Sequence[str] = ()) -> None:
        self.title = title
        self.problems = tuple(problems)
        super().__init__(f"{title}:\n" + "\n".join(f"  - {p}" for p in problems) if problems else title)


def must_step(name: str, got: int, *, start: int, step: int) -> list[str]:
    """One line if `got` is not start, start + step, start + 2 step, ...; it names the nearest that is."""
    if got >= start and (got - start) % step == 0:
        return []
    nearest = start + max(0, round((got - start) / step)) * step
    rule = f"a multiple of {step}" if start == step else f"{start} plus a multiple of {step}"
    return [f"{name}={got} must be {rule}; the nearest is {nearest}"]


def must_be_one_of(name: str, got: str, allowed: Sequence[str]) -> list[str]:
    """One line if `got` is not allowed; it lists what is."""
    return [] if got in allowed else [f"{name}={got} is not known; use one of {', '.join(allowed)}"]
