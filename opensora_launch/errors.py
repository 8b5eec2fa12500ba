"""Errors that the user can correct. Every other failure is a bug of this package, and an `assert` catches it.

A check returns lines to show: what is wrong, what is allowed, what to do. `Problems` collects them, so that a user sees
all problems at once.
"""

import difflib
import errno
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MOST_NAMES = 5  # in a suggestion
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


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


def os_error_line(error: OSError) -> str:
    """What the system says and the path, without Python's quotes and numbers."""
    path = error.filename2 or error.filename  # the second is where a file was to go
    return f"{error.strerror}: {path}" if path else str(error.strerror)


def disk_problem(error: BaseException) -> str | None:
    """One line about a disk that refuses, or about a folder that was deleted while in use; None for other errors.

    Such an error is no bug, so a traceback would not help.
    """
    if not isinstance(error, OSError):
        return None
    if error.errno in _DISK:
        return os_error_line(error)
    if error.errno == errno.ENOENT and error.filename and not (folder := Path(error.filename).parent).exists():
        return f"the folder {folder} was deleted while it was in use"
    return None


def _line(message: str, places: Sequence[str]) -> str:
    if not places:
        return message
    return f"{places[0]}: {message}" if len(places) == 1 else f"{places[0]} and {len(places) - 1} more: {message}"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "did you mean A, B or C?": the names that begin with `name`, or else the nearest; "" if none is near."""
    known = list(known)
    near = [other for other in known if name and other.startswith(name)][:MOST_NAMES]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {' or '.join(filter(None, [', '.join(near[:-1]), near[-1]]))}?" if near else ""


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
