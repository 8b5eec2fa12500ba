"""Lines for people: coloured by rich on a terminal, plain in a pipe or a file."""

import sys
from collections.abc import Iterable, Sequence

StyledLine = Sequence[tuple[str, str]]  # pieces of text, each with a style of rich; "" is none


def print_lines(lines: Iterable[StyledLine]) -> None:
    """Print lines in colour on a terminal. A narrow terminal wraps them; nothing is cut off."""
    if not sys.stdout.isatty():  # rich takes longer to import than some verbs take to answer
        sys.stdout.writelines("".join(text for text, _ in line) + "\n" for line in lines)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        console.print(Text.assemble(*line))


def print_errors(lines: Iterable[str]) -> None:
    """Print lines to stderr."""
    for line in lines:
        print(line, file=sys.stderr)
