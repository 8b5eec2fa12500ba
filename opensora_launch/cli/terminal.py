"""Lines for people: in colour on a terminal that has it, plain elsewhere (a pipe, a file, NO_COLOR, TERM=dumb)."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from opensora_launch import __version__

StyledLine = Sequence[tuple[str, str]]  # pieces of text, each with a style of rich; "" is none
_STARTS = {"error": "bold red", "hint": "cyan", "note": "yellow", "log": "dim"}  # what begins a line, before a colon

_STATES = {
    "done": "green", "running": "cyan", "ok": "green", "failed": "bold red", "lost": "bold red", "error": "bold red",
}  # fmt: skip


def can_redraw(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can draw a line again. TERM=dumb cannot, and gets what a pipe gets."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def columns() -> int:
    """The width of the terminal; 80 without one, unless COLUMNS says otherwise."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def print_lines(lines: Iterable[StyledLine], stream: TextIO | None = None) -> None:
    """Print lines on standard output, or on `stream`. A narrow terminal wraps them; nothing is cut off."""
    stream = stream or sys.stdout
    plain = not can_redraw(stream) or os.environ.get("NO_COLOR")  # no-color.org
    if plain:  # rich takes longer to import than some verbs take to answer
        stream.writelines("".join(text for text, _ in line) + "\n" for line in lines)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, soft_wrap=True, highlight=False)
    for line in lines:
        console.print(Text.assemble(*line))


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON document, which begins with its schema and our version."""
    print(json.dumps({"schema": 1, "version": __version__, **content}, ensure_ascii=False, indent=1))


@contextmanager
def elapsed(words: str) -> Iterator[None]:
    """Show what is being waited for, and for how long, on a terminal; cleared at the end.

    A thread of rich draws it: the block must not fork.
    """
    if not can_redraw(sys.stderr):
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn(words), TimeElapsedColumn(), console=Console(file=sys.stderr), transient=True) as bar:
        bar.add_task("")
        yield


def short_name(name: str, most: int = 24) -> str:
    """The name of a video where there is little room. Its end stays: it may be the number."""
    return name if len(name) <= most else f"{name[: most - 11]}...{name[-8:]}"


def print_errors(lines: Iterable[str]) -> None:
    """Print lines to stderr; "error:", "hint:" and the like stand out."""
    print_lines(map(_marked, lines), sys.stderr)


def state_style(words: str) -> str:
    """The colour of the state of a run, an attempt or a rank: yellow if it is neither good nor bad."""
    return _STATES.get(words.split(",")[0].strip(), "yellow")


def summary_line(line: str) -> StyledLine:
    """A line of a summary: what is before a colon stands out, and so do bars of #."""
    text, bar, rest = line.partition("  #")
    start, colon, value = text.partition(": ")
    pieces = [(start + colon, "bold"), (value, "")] if colon and not start.startswith(" ") else [(text, "")]
    return [*pieces, (bar + rest, "cyan")]


def _marked(line: str) -> StyledLine:
    start, colon, rest = line.partition(":")
    return [(start + colon, _STARTS[start]), (rest, "")] if colon and start in _STARTS else [(line, "")]
