"""The table of `top`: a row per rank with its device's readings; bars, colours and totals on a terminal."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opensora_launch.cli.terminal import short_name
from opensora_launch.cli.view import RunView
from opensora_launch.runs.live import DeviceUse, stuck_s, totals
from opensora_launch.telemetry.stall import Beat

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

NAMES = ("rank", "host", "doing", "step", "use", "memory", "power", "temp", "clock", "stuck since")
ALWAYS = ("rank", "doing", "step")  # on a terminal, other columns need a value
WIDE = 110  # columns of a terminal with room for bars
BAR_CHARS = 10
# Of a column: its reading, the most that this can be, and the colour of a share from so much on.
_LEVELS: Mapping[str, tuple[str, str | float, Mapping[float, str]]] = {
    "use": ("busy", 1.0, {0.7: "green", 0: "yellow"}),  # an idle device is what to look at, not a busy one
    "memory": ("memory_bytes", "memory_total_bytes", {0.97: "red", 0.85: "yellow", 0: "green"}),
    "power": ("power_w", "power_limit_w", {2: "red", 0: "green"}),  # at its limit is as it should be
    "temp": ("temperature_c", 100.0, {0.88: "red", 0.8: "yellow", 0: "green"}),
    "clock": ("mhz", "mhz_max", {0.8: "green", 0: "yellow"}),
}
_STATES = {"failed": "bold red", "lost": "bold red", "suspended": "yellow", "stopped": "yellow", "ended": "dim"}


@dataclass(frozen=True)
class _RankRow:
    """What a row says: texts by column, the readings behind them, and a style for all of it."""

    cells: dict[str, str]
    use: DeviceUse
    style: str = ""


def rank_lines(view: RunView) -> list[str]:
    """Aligned lines for a pipe. Temperature and clock are there if a GPU tells them."""
    rows = list(_rows(view))
    names = [name for name in NAMES if name not in ("temp", "clock") or any(row.cells[name] for row in rows)]
    texts = [names, *([row.cells[name] for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in texts]


def rank_table(view: RunView, width: int) -> "Table":
    """One row per rank for a terminal of `width` columns, and one for all of them together."""
    from rich.table import Table

    rows = list(_rows(view))
    shown = [n for n in NAMES if n in ALWAYS or any(row.cells[n] for row in rows)]
    if len({row.cells["host"] for row in rows}) == 1:
        shown.remove("host")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in shown:
        table.add_column(name, no_wrap=name != "stuck since")
    if len(rows) > 1 and any(row.use != DeviceUse() for row in rows):
        use = totals([row.use for row in rows])
        rows.append(_RankRow(dict.fromkeys(NAMES, "") | {"rank": "all"} | _readings(use), use, "bold"))
    for row in rows:
        table.add_row(*(_painted(name, row, bars=width >= WIDE) for name in shown), style=row.style)
    return table


def _rows(view: RunView) -> Iterator[_RankRow]:
    for beat in view.beats:
        state, use = view.state(beat), view.uses.get(beat.rank, DeviceUse())
        ended = state not in ("running", "suspended", "lost")
        use = DeviceUse() if ended else use
        stuck = None if view.suspended else stuck_s(beat, time.monotonic())
        step = "" if beat.step is None or not beat.steps else f"{beat.step + 1}/{beat.steps}"
        cells = {
            "rank": str(beat.rank),
            "host": beat.host,
            "doing": _doing(beat, state),
            "step": "" if state == "done" else step,
            **_readings(use),
            "stuck since": "" if stuck is None else f"{stuck:.0f} s in {beat.collective}",
        }
        word = "ended" if state == "done" else state
        yield _RankRow(cells, use, _STATES.get(word, "yellow" if cells["stuck since"] else ""))


def _doing(beat: Beat, state: str) -> str:
    if state == "done":
        return "ended"
    phase = f"{beat.phase}, image" if beat.images else beat.phase
    words = f"{state} in {phase}" if state in ("lost", "suspended") else state
    return f"{phase if state == 'running' else words} {short_name(beat.video or '')}".strip()


def _readings(use: DeviceUse) -> dict[str, str]:
    busy, memory, power = use.cells
    return {
        "use": busy,
        "memory": memory,
        "power": power,
        "temp": "" if use.temperature_c is None else f"{use.temperature_c:.0f} °C",
        "clock": "" if use.mhz is None else f"{use.mhz:.0f} MHz",
    }


def _painted(name: str, row: _RankRow, *, bars: bool) -> "Text":
    """A cell; readings are in the colour of their level, behind a bar if there is room."""
    from rich.text import Text

    text = row.cells[name]
    found = _level(name, row.use) if name in _LEVELS and text else None
    if found is None:
        return Text(text)
    share, colour = found
    full = min(BAR_CHARS, round(share * BAR_CHARS))
    bar = f"{'█' * full}{'░' * (BAR_CHARS - full)} " if bars and name in ("use", "memory") else ""
    return Text.assemble((bar, colour), (text, colour))


def _level(name: str, use: DeviceUse) -> tuple[float, str] | None:
    """A reading as a share of the most that it can be, and its colour; None if one of them is unknown."""
    reading, most, colours = _LEVELS[name]
    value, whole = getattr(use, reading), getattr(use, most) if isinstance(most, str) else most
    if value is None or not whole:
        return None
    return value / whole, next((colour for least, colour in colours.items() if value / whole >= least), "")
