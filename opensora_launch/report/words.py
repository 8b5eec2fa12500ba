"""Numbers, texts and tables as Markdown shows them."""

import re
from collections.abc import Sequence

GIB = 1 << 30


def secs(seconds: float) -> str:
    return f"{seconds:.{2 if seconds < 10 else 1}f}"


def secs_of(seconds: float, wall_s: float) -> str:
    return f"{secs(seconds)} ({seconds / wall_s if wall_s else 0.0:.0%})"


def gib(count: float | None) -> str:
    return "?" if count is None else f"{count / GIB:.2f}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def md_text(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text)


def md_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A Markdown table that lines up as plain text too. Columns of `words` are set to the left, the others right."""
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [c.ljust(w) if n in words else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(cells)} |"

    ruler = "|".join("-" * (w + 2) if n in words else "-" * (w + 1) + ":" for n, w in enumerate(widths))
    return "\n".join([line(head), f"|{ruler}|", *(line(row) for row in rows)])
