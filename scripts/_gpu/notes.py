"""The result file of an item. Each of its points is measured once and stored at once, also if it fails."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from _bench import Spread, json_text, write_text

Point = Callable[[], Mapping[str, Any]]


class OutOfBudget(Exception):
    """The time is used up. What was measured is stored, and the next call goes on."""


class Notes:
    """OUT/ITEM.json. A point that is in it, and that ended, is not measured again.

    `facts` name the machine, the versions and the date; a point has its own date and source, since a later
    call may add it.
    """

    def __init__(self, path: Path, item: str, facts: Mapping[str, Any], until_s: float = float("inf")) -> None:
        """until_s: the second of `time.monotonic()` after which no point starts."""
        self._path, self._until_s = path, until_s
        found = read_notes(path) or {"points": {}}
        self.data: dict[str, Any] = {
            "item": item,
            "kind": "measured",
            **facts,
            "complete": False,
            "error": None,
            "points": found["points"],
        }

    def point(self, name: str, measure: Point) -> None:
        """Measure a point and store it. An error becomes the point's result; a lack of time is OutOfBudget."""
        if name in self.data["points"]:
            return
        if time.monotonic() > self._until_s:
            raise OutOfBudget
        start = time.monotonic()
        try:
            found = dict(measure())
        except Exception as error:  # noqa: BLE001 the next point may work
            found = {"error": error_line(error)}
        machine = self.data["machine"]
        found |= {"took_s": round(time.monotonic() - start, 2), "made": machine["made"], "source": machine["source"]}
        self.data["points"][name] = found
        self._write()

    def close(self, error: str | None = None) -> None:
        """Store that the item is over. error: what kept it from measuring its points."""
        self.data |= {"complete": True, "error": error}
        self._write()

    def _write(self) -> None:
        write_text(self._path, json_text(self.data))


def read_notes(path: Path) -> dict[str, Any] | None:
    """Return what an item has stored; None if there is nothing that can be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def failures(found: Mapping[str, Any]) -> list[str]:
    """Return one line per failure of an item."""
    whole = [found["error"]] if found["error"] else []
    return [*whole, *(f"{name}: {point['error']}" for name, point in found["points"].items() if point.get("error"))]


def error_line(error: BaseException) -> str:
    """Return an error in one line: its kind and the first line of what it says."""
    words = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def median_of(spread: Spread | Mapping[str, Any]) -> float:
    """Return the median of a spread as it was measured, or as it was read from a file."""
    return float(spread.median if isinstance(spread, Spread) else spread["median"])
