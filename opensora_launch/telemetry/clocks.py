"""Two clocks with the same three methods: the host's, and a GPU's put on the host's time without synchronising.

A mark is taken in the hot loop. It may be read only once it is `ready`; then `seconds` is `time.monotonic()` seconds.
"""

import time
from collections.abc import Callable
from typing import Any

ANCHOR_TRIES = 3
REANCHOR_S = 1.0


class HostClock:
    """A mark is already seconds."""

    name = "host"
    error_s = 0.0
    mark = staticmethod(time.monotonic)

    def ready(self, mark: float) -> bool:
        return True

    def seconds(self, mark: float) -> float:
        return mark

    def wait(self) -> None:
        """The host has done what it was asked when the call returns."""

    def drift_s(self) -> float:
        return 0.0


class DeviceClock:
    """A mark is an event in the current CUDA stream, so it tells when the device came there, not when the host asked.

    elapsed_time() is a 32-bit float of milliseconds: 0.06 ms coarse after a quarter of an hour. So the anchor moves
    along with the events that are read, and distances stay short.
    """

    name = "device"

    def __init__(self, event: Callable[[], Any], synchronize: Callable[[], None]) -> None:
        """`event` makes a timing event, `synchronize` waits for the device; see `cuda_clock`."""
        self._event = event
        self.wait = synchronize
        self._anchor, self._anchor_s, self.error_s = min(
            (self._both_clocks() for _ in range(ANCHOR_TRIES)), key=lambda found: found[2]
        )

    def mark(self) -> Any:
        event = self._event()
        event.record()
        return event

    def ready(self, mark: Any) -> bool:
        return bool(mark.query())

    def seconds(self, mark: Any) -> float:
        found = self._anchor_s + float(self._anchor.elapsed_time(mark)) / 1000
        if found - self._anchor_s > REANCHOR_S:
            self._anchor, self._anchor_s = mark, found
        return found

    def drift_s(self) -> float:
        """How far the device's clock has run away from the host's since the start. Waits for the device."""
        event, host_s, _ = self._both_clocks()
        return self.seconds(event) - host_s

    def _both_clocks(self) -> tuple[Any, float, float]:
        """An event, the host's time at it, and half of the interval in which it must lie."""
        self.wait()
        before = time.monotonic()
        event = self.mark()
        self.wait()
        after = time.monotonic()
        return event, (before + after) / 2, (after - before) / 2


Clock = HostClock | DeviceClock


def cuda_clock() -> DeviceClock:
    """The clock of the current CUDA device."""
    import torch

    return DeviceClock(lambda: torch.cuda.Event(enable_timing=True), torch.cuda.synchronize)
