"""Count what the host does to the GPU, and which line of the product did it."""

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

PRODUCT = "opensora_launch/"
LOOP = ("sampling/denoise.py", "denoise")  # file and function of the denoising loop
BEFORE_LOOP = ("sampling/denoise.py", "weights_on_device")  # which it calls once, before its first step


@dataclass(frozen=True)
class Wait:
    """The host waited for the GPU. `place` is the innermost line of the product; `in_step`: the denoising loop ran."""

    what: str
    place: str
    in_step: bool


@dataclass
class Ledger:
    """Of one process, from the installation on."""

    waits: Counter[Wait] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)  # of attention, and products in fp8
    collectives: Counter[str] = field(default_factory=Counter)  # of tensors on CUDA
    pins: Counter[str] = field(default_factory=Counter)  # bytes asked of torch's host allocator, by place
    cached_pins: int = 0  # bytes that it keeps
    registered: dict[int, int] = field(default_factory=dict)  # address -> bytes of registered host memory
    registered_in_all: int = 0

    def wait(self, what: str) -> None:
        place, in_step = place_in_product()
        self.waits[Wait(what, place, in_step)] += 1

    def pin(self, nbytes: int) -> None:
        self.pins[place_in_product()[0]] += nbytes
        self.cached_pins += nbytes

    def empty_host_cache(self) -> None:
        self.cached_pins = 0

    def is_registered(self, address: int) -> bool:
        return any(first <= address < first + size for first, size in self.registered.items())

    def as_json(self) -> dict[str, Any]:
        return {
            "waits": [{**asdict(wait), "count": count} for wait, count in self.waits.items()],
            "kernels": dict(self.kernels),
            "collectives": dict(self.collectives),
            "pins": dict(self.pins),
            "cached_pins": self.cached_pins,
            "registered": sum(self.registered.values()),
            "registered_in_all": self.registered_in_all,
        }


LEDGER = Ledger()


def place_in_product() -> tuple[str, bool]:
    """Return the innermost line of the product on the stack, and whether the denoising loop is below it."""
    places = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        _, found, file = frame.f_code.co_filename.rpartition(PRODUCT)
        if found:
            places.append((file, frame.f_code.co_name, frame.f_lineno))
        frame = frame.f_back
    functions = {place[:2] for place in places}
    innermost = "{0}:{2} {1}".format(*places[0]) if places else "?"
    return innermost, LOOP in functions and BEFORE_LOOP not in functions
