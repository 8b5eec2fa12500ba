"""Whether something moves, judged by looking at it again and again, on this process's own clock.

The clocks of hosts differ, and jump. So a time that another process wrote only tells whether it was written anew.
"""

import time
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import NamedTuple

from opensora_launch.telemetry.stall import Beat

WATCHED_S = 5.0  # an older look says nothing about now: this process may have been suspended, and others with it


class Look(NamedTuple):
    """What a look has shown. Times are this process's `time.monotonic()`."""

    value: object
    moved: bool  # since the look before
    since_s: float  # from when on the value was seen to be the same
    last_s: float  # the time of this look

    @property
    def still_s(self) -> float:
        return self.last_s - self.since_s


class Moves:
    """The last look at each thing."""

    def __init__(self) -> None:
        self._looks: dict[Hashable, Look] = {}

    def look(self, key: Hashable, value: object) -> Look:
        now, before = time.monotonic(), self._looks.get(key)
        if before is None or now - before.last_s >= WATCHED_S:
            found = Look(value, False, now, now)
        else:
            moved = before.value != value
            found = Look(value, moved, now if moved else before.since_s, now)
        self._looks[key] = found
        return found

    def own_time(self, beats: Iterable[Beat]) -> list[Beat]:
        """The same beats, with their times as `time.monotonic()` of this process: when it saw each of them first.

        One that is seen for the first time counts as just written.
        """
        found = []
        for beat in beats:
            ahead_s = beat.time_s - self.look((beat.rank, beat.host, beat.pid), beat.time_s).since_s
            times = {name: getattr(beat, name) - ahead_s for name in ("time_s", "progress_s", "load_since_s")}
            found.append(replace(beat, **times))
        return found
