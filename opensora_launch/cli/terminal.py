"""Aligned lines for people: coloured by rich on a terminal, plain in a pipe or a file."""

import sys
from collections.abc import Iterable, Sequence

Piece = tuple[str, str]  # text, and its style in rich's words; "" is none
Line = Sequence[Piece]


def show(lines: Iterable[Line]) -> None:
    """Print each line whole: a terminal that is narrower wraps it, and no cell is cut off."""
    if not sys.stdout.isatty():  # nothing to colour, and rich takes longer to import than some verbs to answer
        sys.stdout.writelines("".join(text for text, _ in line) + "\n" for line in lines)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        console.print(Text.assemble(*line))
