"""Errors that the user can correct. Every other failure is a bug of this package, and an `assert` catches it.

A check returns lines to show: what is wrong, what is allowed, what to do. `Problems` collects them, so that a user sees
all problems at once.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """The request cannot be carried out. The command line prints it without a traceback and exits with code 2."""

    def __init__(self, title: str, problems: Sequence[str] = ()) -> None:
        self.title = title
        self.problems = tuple(problems)
        super().__init__(f"{title}:\n" + "\n".join(f"  - {p}" for p in problems) if problems else title)


class Problems:
    """Collects what is wrong, in the order it was found. The same problem in several places becomes one line."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], list[str]] = {}  # (file, message) -> where it was found

    def add(self, lines: Iterable[str]) -> None:
        """Add lines that name their place themselves."""
        for line in lines:
            self._places.setdefault(("", line), [])

    def add_at(self, place: str, message: str, *, file: str = "") -> None:
        """Add a message about `place`. It joins the same message about another place in the same `file`."""
        self._places.setdefault((file, message), []).append(place)

    @property
    def lines(self) -> list[str]:
        """One line per problem: "list.csv line 7 and 3 more: the text is empty"."""
        return [_line(message, places) for (_, message), places in self._places.items()]

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Add the problems of a UserError that the block raises, and go on after the block."""
        try:
            yield
        except UserError as error:
            self.add(error.problems or (error.title,))

    def stop(self, title: str) -> None:
        """Raise UserError if there are problems."""
        if self._places:
            raise UserError(title, self.lines)


def _line(message: str, places: Sequence[str]) -> str:
    if not places:
        return message
    return f"{places[0]}: {message}" if len(places) == 1 else f"{places[0]} and {len(places) - 1} more: {message}"


def must_step(name: str, got: int, *, start: int, step: int) -> list[str]:
    """Return one line if `got` is not start, start + step, start + 2 step, ...; it names the nearest allowed number."""
    if got >= start and (got - start) % step == 0:
        return []
    nearest = start + max(0, round((got - start) / step)) * step
    rule = f"a multiple of {step}" if start == step else f"{start} plus a multiple of {step}"
    return [f"{name}={got} must be {rule}; the nearest is {nearest}"]


def must_be_one_of(name: str, got: str, allowed: Sequence[str]) -> list[str]:
    """Return one line if `got` is not allowed; it lists what is allowed."""
    return [] if got in allowed else [f"{name}={got} is not known; use one of {', '.join(allowed)}"]


def must_be_positive(name: str, got: float | None, least: float | None = None) -> list[str]:
    """Return one line if `got` is not finite, or not above 0; with `least`, if it is below `least`. None is allowed."""
    if got is None or (math.isfinite(got) and (got > 0 if least is None else got >= least)):
        return []
    return [f"{name}={got} must be {'more than 0' if least is None else f'at least {least:g}'}"]
