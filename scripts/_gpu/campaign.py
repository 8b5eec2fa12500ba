"""Run the items one after another, each in a process of its own, until the budget is used up."""

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _bench import json_text, write_text

from _gpu.notes import failures, read_notes
from opensora_launch import exit_codes

GRACE = 1.2  # an item that is still busy after this many budgets is ended


@dataclass(frozen=True)
class Campaign:
    """What to run, and where results go. `command` runs this script; `words` are passed on to it for each item."""

    out: Path
    command: tuple[str, ...]
    words: tuple[str, ...]
    budget_s: float | None
    say: Callable[[str], None]

    def file(self, item: str) -> Path:
        return self.out / f"{item}.json"

    def run(self, items: Sequence[str], again: bool) -> int:
        """Run the items that have no result; the exit code: 75 if time ran out before the last one, 1 after a failure.

        A process of its own gives each item all of the GPU's memory, and an error of CUDA, after which nothing in
        that process works, ends one item only.
        """
        if again:
            for item in items:
                self.file(item).unlink(missing_ok=True)
        start, ran = time.monotonic(), False
        for item in items:
            if (found := read_notes(self.file(item))) and found["complete"]:
                self.say(f"{item}: measured before; --again measures it again")
                continue
            left_s = None if self.budget_s is None else start + self.budget_s - time.monotonic()
            if (left_s is not None and left_s <= 0) or not self._one(item, left_s, first=not ran):
                done = sum(1 for name in items if (notes := read_notes(self.file(name))) and notes["complete"])
                self.say(f"The budget is used up: {done} of {len(items)} items are done. The same command goes on.")
                return exit_codes.PREEMPTED
            ran = True
        return exit_codes.FAILURE if any(self._failed(item) for item in items) else exit_codes.DONE

    def _one(self, item: str, left_s: float | None, first: bool) -> bool:
        """Run one item; False if its time ran out before its last point.

        An item that does not end although it had the whole budget has failed, or the next call would repeat it.
        """
        words = [*self.words, "--here", "--out", str(self.out)]
        limit_s = None
        if left_s is not None and self.budget_s is not None:
            words += ["--budget-s", f"{left_s:.1f}"]
            limit_s = left_s + (GRACE - 1) * self.budget_s
        begun = time.monotonic()
        try:
            code = subprocess.run([*self.command, item, *words], timeout=limit_s).returncode
        except subprocess.TimeoutExpired:
            if not first:
                return False
            self._close(item, f"it did not end in {limit_s:.0f} s")
            code = exit_codes.FAILURE
        if code == exit_codes.PREEMPTED:
            return False
        found = read_notes(self.file(item))
        if found is None or not found["complete"]:
            self._close(item, f"its process ended with {code} before it had a result")
        self.say(f"{item}: {time.monotonic() - begun:.0f} s")
        for line in failures(read_notes(self.file(item)) or {"error": "no result", "points": {}}):
            self.say(f"  failed: {line}")
        return True

    def _close(self, item: str, error: str) -> None:
        found = read_notes(self.file(item)) or {"item": item, "kind": "measured", "points": {}}
        write_text(self.file(item), json_text(found | {"complete": True, "error": error}))

    def _failed(self, item: str) -> bool:
        found = read_notes(self.file(item))
        return found is None or bool(failures(found))
