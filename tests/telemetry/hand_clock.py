"""A clock that moves by hand, in place of the one by which a process sees others move."""

import pytest

from opensora_launch.telemetry import moves


class HandClock:
    def __init__(self) -> None:
        self.now = 1e5

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    made = HandClock()
    monkeypatch.setattr(moves, "time", made)
    return made
