"""Two clocks with the same methods: the host's, and a GPU's, converted to the host's time without synchronising.

The hot loop takes marks. Once a mark is `ready`, `seconds` converts it to seconds of `time.monotonic()`.
"""

import time
from collections.abc import Callable
from typing import Any

ANCHOR_TRIES = 3
REANCHOR_S = 1.0
POLLS = 100  # asked without a pause: what the host has just sent is done in microseconds
PAUSE_S = 0.0005


class HostClock:
    """Marks are seconds already."""

    name = "host"
    error_s = 0.0
    mark = staticmethod(time.monotonic)

    def ready(self, mark: float) -> bool:
        return True

    def seconds(self, mark: float) -> float:
        return mark

    def wait(self) -> None:
        """Do nothing: the host has finished its work when a call returns."""

    def enter_thread(self) -> None:
        """Do nothing: all threads have the same clock."""

    def drift_s(self) -> float:
        return 0.0


class DeviceClock:
    """Marks are events in the current CUDA stream: they tell when the device reached them, not when the host did.

    elapsed_time() is a 32-bit float of milliseconds, with a resolution of 0.06 ms after 15 minutes. So the anchor moves
    along with the events that are read, and distances stay short.
    """

    name = "device"

    def __init__(self, event: Callable[[], Any], enter_thread: Callable[[], None]) -> None:
        """`event` creates a timing event; `enter_thread` makes the device the calling thread's; see `cuda_clock`."""
        self._event = event
        self.enter_thread = enter_thread
        self._anchor, self._anchor_s, self.error_s = min(
            (self._both_clocks() for _ in range(ANCHOR_TRIES)), key=lambda found: found[2]
        )

    def mark(self) -> Any:
        event = self._event()
        event.record()
        return event

    def ready(self, mark: Any) -> bool:
        return bool(mark.query())

    def wait(self) -> None:
        """Wait until the device has done all that is on the current stream.

        Polls. While a thread is in torch.cuda.synchronize, a query of another thread may hang (pytorch#130844), and
        Event.query keeps Python's lock: then the heartbeat and this thread would both stand still.
        """
        mark, polls = self.mark(), 0
        while not self.ready(mark):
            time.sleep(0 if polls < POLLS else PAUSE_S)
            polls += 1

    def seconds(self, mark: Any) -> float:
        found = self._anchor_s + float(self._anchor.elapsed_time(mark)) / 1000
        if found - self._anchor_s > REANCHOR_S:
            self._anchor, self._anchor_s = mark, found
        return found

    def drift_s(self) -> float:
        """How far the device's clock has drifted from the host's since the start. Waits for the device."""
        event, host_s, _ = self._both_clocks()
        return self.seconds(event) - host_s

    def _both_clocks(self) -> tuple[Any, float, float]:
        """An event, the host's time at it, and the error of that time."""
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

    device = torch.cuda.current_device()
    return DeviceClock(lambda: torch.cuda.Event(enable_timing=True), lambda: torch.cuda.set_device(device))
