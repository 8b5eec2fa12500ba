"""The events of a rank, and the lines of `telemetry/rank<R>.jsonl` that hold them.

All times are seconds of the host's `time.monotonic()`. On GPUs, steps and collectives are timed by the device and
converted to that clock; the first line then has `"clock": "device"`.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec

from opensora_launch.telemetry.lines import read_lines

EVENTS_SCHEMA = 2
READABLE = (1, 2)  # schema 1 has no work events, process ids, device ids and clock offsets
IMAGE = "image"  # the phase of the image stage, which holds phases and steps of its own
PHASES = ("setup", "load", "text", "compile", IMAGE, "denoise", "vae", "save")


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """One phase on one rank. Phases of a rank do not overlap."""

    phase: str
    start_s: float
    end_s: float
    video: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One denoising step, inside a denoise phase. With own_rows 0, this rank computes nothing in it."""

    video: str
    step: int
    rows: int
    own_rows: int
    layout: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class WorkSpan:
    """A part of a step's compute: `part` is "attention" (one call of the kernel), "double" or "single" (one block).

    "preview" is work outside steps.
    """

    part: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective. `sequence` counts those of this group of ranks, so (ranks, sequence) agree on all of them."""

    axis: str
    ranks: tuple[int, ...]
    sequence: int
    bytes: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class ConstantWeights:
    """Weights of a file that are one number all over, as this rank found while it loaded them."""

    file: str
    names: tuple[str, ...]


Event = PhaseSpan | Step | WorkSpan | Collective
EVENTS: dict[str, type[Event]] = {"span": PhaseSpan, "step": Step, "work": WorkSpan, "collective": Collective}
_KEYS = {kind: (name, [f.name for f in fields(kind)]) for name, kind in EVENTS.items()}  # what a line of it holds
_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes a new encoder for each line


@dataclass(frozen=True)
class Meta:
    """The first line: who recorded, and since when. `start_epoch_s` is the instant `start_s` by the wall clock."""

    rank: int
    world: int
    local_rank: int
    host: str
    device: str  # "cpu" or "cuda"
    device_name: str
    threads: int
    start_s: float
    start_epoch_s: float
    layouts: Mapping[str, str]  # rows of a step -> its layout
    clock: str = "host"  # of steps and collectives: "host" or "device"
    clock_error_s: float = 0.0  # of the conversion from the device's clock
    attention: str | None = None  # the kernel that ran, if the worker knows it
    attention_refused: tuple[str, ...] = ()  # faster kernels that are installed and failed their trial, and why
    pid: int | None = None
    device_uuid: str | None = None  # of a GPU, as in NVML and CUDA
    clock_offset_s: float | None = None  # add it to this host's times to get those of rank 0's host
    clock_offset_error_s: float | None = None  # half of the fastest round trip over the process group
    versions: Mapping[str, str] | None = None  # of Python, packages and libraries


@dataclass(frozen=True)
class End:
    """The last line. A rank that was stopped has none."""

    end_s: float
    peak_memory_bytes: int
    videos: tuple[str, ...]
    clock_drift_s: float = 0.0  # of the device's clock against the host's, over the run
    clock_offset_s: float | None = None  # measured again at the end
    set_aside_bytes: int | None = None  # on the GPU before anything was loaded: by CUDA, NCCL and others


@dataclass(frozen=True)
class RankEvents:
    """One file. `end` is None if the rank did not reach its end."""

    meta: Meta
    spans: tuple[PhaseSpan, ...] = ()
    steps: tuple[Step, ...] = ()
    collectives: tuple[Collective, ...] = ()
    work: tuple[WorkSpan, ...] = ()
    constant: tuple[ConstantWeights, ...] = ()
    end: End | None = None
    bad_lines: int = field(default=0, compare=False)

    @property
    def end_s(self) -> float:
        """When the rank ended, or the last moment that it recorded."""
        if self.end is not None:
            return self.end.end_s
        events: tuple[Event, ...] = (*self.spans, *self.steps, *self.work, *self.collectives)
        return max((e.end_s for e in events), default=self.meta.start_s)


def line_of(kind: type[Event], values: Sequence[Any]) -> str:
    """The line of an event that is given as its class and its fields in order.

    A step leaves hundreds of the first two kinds. They are spelled out here, which is several times as fast as the
    encoder. Their texts are names of parts and axes, which need no escapes.
    """
    if kind is WorkSpan:
        part, start, end = values
        return f'{{"kind": "work", "part": "{part}", "start_s": {start!r}, "end_s": {end!r}}}\n'
    if kind is Collective:
        axis, ranks, sequence, nbytes, start, end = values
        who = f'"axis": "{axis}", "ranks": {list(ranks)!r}, "sequence": {sequence}, "bytes": {nbytes}'
        return f'{{"kind": "collective", {who}, "start_s": {start!r}, "end_s": {end!r}}}\n'
    name, keys = _KEYS[kind]
    return _line(name, {key: value for key, value in zip(keys, values, strict=True) if value is not None})


def record_line(record: Meta | End | ConstantWeights) -> str:
    """The line of a record, without the fields that are None."""
    known = {f.name: value for f in fields(record) if (value := getattr(record, f.name)) is not None}
    schema = {"schema": EVENTS_SCHEMA} if isinstance(record, Meta) else {}
    return _line(_RECORD_NAMES[type(record)], schema | known)


def _line(kind: str, values: Mapping[str, Any]) -> str:
    return _encode({"kind": kind, **values}) + "\n"


_RECORDS: dict[str, type[Any]] = {"meta": Meta, "end": End, "constant": ConstantWeights}
_RECORD_NAMES = {kind: name for name, kind in _RECORDS.items()}
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    name: msgspec.json.Decoder(kind) for name, kind in {**_RECORDS, **EVENTS}.items()
}


def read_events(path: Path) -> RankEvents | None:
    """The events of one file; None if not even its first line is whole. Raises UserError for another schema."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found, bad = read_lines(text, _DECODERS, schemas=READABLE, path=path)
    if not found["meta"]:
        return None
    return RankEvents(
        meta=found["meta"][0],
        spans=tuple(found["span"]),
        steps=tuple(found["step"]),
        collectives=tuple(found["collective"]),
        work=tuple(found["work"]),
        constant=tuple(found["constant"]),
        end=found["end"][-1] if found["end"] else None,
        bad_lines=bad,
    )


def read_meta(path: Path) -> Meta | None:
    """The first line of a file, if it is whole; the rest may be long."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.readline(), type=Meta)
    except (OSError, msgspec.MsgspecError):
        return None


def read_first_step(path: Path) -> Step | None:
    """The first step in a file, None before there is one. Reads no further than it."""
    with path.open("rb") as file:
        line = next((line for line in file if line.startswith(b'{"kind": "step"')), b"")
    try:
        return msgspec.json.decode(line, type=Step)
    except msgspec.MsgspecError:
        return None


def read_constant(path: Path) -> list[ConstantWeights]:
    """Weights that a rank found to be one number all over, from its file up to its first step."""
    found = list[ConstantWeights]()
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b'{"kind": "step"'):
                break
            if line.startswith(b'{"kind": "constant"'):
                with suppress(msgspec.MsgspecError):
                    found.append(msgspec.json.decode(line, type=ConstantWeights))
    return found
