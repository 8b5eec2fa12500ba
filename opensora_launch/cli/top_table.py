"""The table of `top`: a row per rank with its device's readings; bars, colours and totals on a terminal."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opensora_launch.cli.terminal import short_name
from opensora_launch.cli.view import RunView, step_text
from opensora_launch.runs.live import DeviceUse, stuck_s, totals
from opensora_launch.telemetry.stall import Beat

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

NAMES = ("rank", "host", "doing", "step", "use", "memory", "power", "temp", "clock", "stuck since")
ALWAYS = ("rank", "doing", "step")  # on a terminal, other columns need a value
WIDE = 110  # columns of a terminal with room for bars
BAR_CHARS = 10
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
        rows.append(_all(rows))
    for row in rows:
        table.add_row(*(_painted(name, row, bars=width >= WIDE) for name in shown), style=row.style)
    return table


def _rows(view: RunView) -> Iterator[_RankRow]:
    for beat in view.beats:
        state, use = view.state(beat), view.uses.get(beat.rank, DeviceUse())
        ended = state not in ("running", "suspended", "lost")
        use = DeviceUse() if ended else use
        stuck = None if view.suspended else stuck_s(beat, time.monotonic())
        cells = {
            "rank": str(beat.rank),
            "host": beat.host,
            "doing": _doing(beat, state),
            "step": "" if state == "done" else step_text(beat),
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


def _all(rows: Sequence[_RankRow]) -> _RankRow:
    """The ranks together: mean use, memory and power of all, the hottest and the slowest GPU."""
    use = totals([row.use for row in rows])
    return _RankRow(dict.fromkeys(NAMES, "") | {"rank": "all"} | _readings(use), use, "bold")


def _painted(name: str, row: _RankRow, *, bars: bool) -> "Text":
    """A cell; readings are in the colour of their level, behind a bar if there is room."""
    from rich.text import Text

    text = row.cells[name]
    found = _LEVELS[name](row.use) if name in _LEVELS and text else None
    if found is None:
        return Text(text)
    share, colour = found
    full = min(BAR_CHARS, round(share * BAR_CHARS))
    bar = f"{'█' * full}{'░' * (BAR_CHARS - full)} " if bars and name in ("use", "memory") else ""
    return Text.assemble((bar, colour), (text, colour))


def _share(value: float | None, most: float | None) -> float | None:
    return value / most if value is not None and most else None


def _level(share: float | None, warn: float, bad: float) -> tuple[float, str] | None:
    """The share with its colour: green, yellow from `warn` on, red from `bad` on."""
    return None if share is None else (share, "red" if share >= bad else "yellow" if share >= warn else "green")


def _use_level(use: DeviceUse) -> tuple[float, str] | None:
    """An idle device is what to look at, not a busy one."""
    return None if use.busy is None else (use.busy, "green" if use.busy >= 0.7 else "yellow")


def _clock_level(use: DeviceUse) -> tuple[float, str] | None:
    share = _share(use.mhz, use.mhz_max)
    return None if share is None else (share, "green" if share >= 0.8 else "yellow")


_LEVELS: dict[str, Callable[[DeviceUse], tuple[float, str] | None]] = {
    "use": _use_level,
    "memory": lambda use: _level(_share(use.memory_bytes, use.memory_total_bytes), 0.85, 0.97),
    "power": lambda use: _level(_share(use.power_w, use.power_limit_w), 2.0, 2.0),  # at its limit is as it should be
    "temp": lambda use: _level(_share(use.temperature_c, 100.0), 0.8, 0.88),
    "clock": _clock_level,
}
