"""Doubles of what torch.cuda shows of the hardware: streams, events, memory, properties, the CUDA runtime."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.fake_cuda.ledger import LEDGER


@dataclass
class Hardware:
    """The GPUs that this process sees. It works on number `current`; `index` is where its work is at the start."""

    count: int = 1
    index: int = 0
    capability: tuple[int, int] = (9, 0)
    total_bytes: int = 80 << 30
    free_bytes: int = 70 << 30
    current: int = field(init=False)

    def __post_init__(self) -> None:
        self.current = 0

    def set_device(self, device: Any) -> None:
        self.current = _number(device, self.current)
        assert 0 <= self.current < self.count, f"invalid device ordinal {device}"

    def properties(self, device: Any = None) -> "Properties":
        return Properties(_number(device, self.current), self.total_bytes, *self.capability)


def _number(device: Any, current: int) -> int:
    if device is None:
        return current
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return current if index is None else index


@dataclass(frozen=True)
class Properties:
    """What `get_device_properties` returns; `number` makes the UUIDs of the GPUs differ."""

    number: int
    total_memory: int
    major: int
    minor: int
    name: str = "Fake GPU"
    multi_processor_count: int = 132

    @property
    def uuid(self) -> str:
        return f"fa4e0000-0000-0000-0000-{self.number:012d}"


class Event:
    """Work on this double is finished when a call returns, so an event is reached when it is recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.time_s: float | None = None

    def record(self, stream: Any = None) -> None:
        self.time_s = time.monotonic()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def elapsed_time(self, other: "Event") -> float:
        """Return milliseconds. Both events must have been recorded, as on a GPU."""
        assert self.time_s is not None, "the first event was not recorded"
        assert other.time_s is not None, "the second event was not recorded"
        return 1000 * (other.time_s - self.time_s)


class Stream:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, other: "Stream") -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record()
        return event

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


@contextmanager
def use_stream(stream: Stream | None) -> Iterator[None]:
    yield


class CudaRuntime:
    """The calls of the CUDA runtime that `torch.cuda.cudart()` offers and the product uses. 0 is success."""

    ALREADY_REGISTERED, NOT_REGISTERED = 712, 713

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        if LEDGER.is_registered(address):
            return self.ALREADY_REGISTERED
        LEDGER.registered[address] = nbytes
        LEDGER.registered_in_all += nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        return 0 if LEDGER.registered.pop(address, None) else self.NOT_REGISTERED


def make_generator(make: Any, device: Any = "cpu") -> Any:
    """Return a generator of the CPU for every device. A GPU's generator draws other numbers."""
    return make("cpu")
