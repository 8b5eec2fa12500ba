"""The events of a rank, and the lines of `telemetry/rank<R>.jsonl` that hold them.

All times are seconds of the host's `time.monotonic()`. On GPUs the times of steps and collectives are the device's,
put on that clock; meta says so (`"clock": "device"`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from opensora_launch.errors import UserError
from opensora_launch.telemetry.typed import fits

SCHEMA = 2
READABLE = (1, 2)  # schema 1 has no work events, processes, devices' ids and offsets of clocks
PHASES = ("setup", "load", "text", "denoise", "vae", "save")


class Span(NamedTuple):
    """One phase on one rank; phases of a rank do not overlap."""

    phase: str
    start_s: float
    end_s: float
    video: str | None = None


class Step(NamedTuple):
    """One denoising step, inside a denoise span. own_rows 0: this rank has nothing to compute in it."""

    video: str
    step: int
    rows: int
    own_rows: int
    layout: str
    start_s: float
    end_s: float


class Work(NamedTuple):
    """What a step computes: `part` is "attention" (a call of the kernel), "double" or "single" (blocks of it)."""

    part: str
    start_s: float
    end_s: float


class Collective(NamedTuple):
    """`sequence` counts the collectives of this group of ranks, so (ranks, sequence) is the same on all of them."""

    axis: str
    ranks: tuple[int, ...]
    sequence: int
    bytes: int
    start_s: float
    end_s: float


Event = Span | Step | Work | Collective
KINDS: dict[str, type[Event]] = {"span": Span, "step": Step, "work": Work, "collective": Collective}
NAMES = {kind: name for name, kind in KINDS.items()}
ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes a new encoder for each line


@dataclass(frozen=True)
class Meta:
    """The first line: who recorded, and when it began (`start_epoch_s` is the same instant by the wall clock)."""

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
    clock_error_s: float = 0.0  # of putting the device's clock on the host's
    attention: str | None = None  # the kernel that ran, where the worker says so
    pid: int | None = None
    device_uuid: str | None = None  # of a GPU, as NVML and CUDA name it
    clock_offset_s: float | None = None  # add it to this host's monotonic times: then they are those of rank 0's host
    clock_offset_error_s: float | None = None  # half of the fastest round trip over the process group
    versions: Mapping[str, str] | None = None  # of Python, packages and libraries


@dataclass(frozen=True)
class End:
    """The last line; a rank that was stopped has none."""

    end_s: float
    peak_memory_bytes: int
    videos: tuple[str, ...]
    clock_drift_s: float = 0.0  # device's clock against the host's, over the run
    clock_offset_s: float | None = None  # measured again at the end


@dataclass(frozen=True)
class RankEvents:
    """One file. `end` is None where the rank did not come to its end."""

    meta: Meta
    spans: tuple[Span, ...] = ()
    steps: tuple[Step, ...] = ()
    collectives: tuple[Collective, ...] = ()
    work: tuple[Work, ...] = ()
    end: End | None = None
    bad_lines: int = field(default=0, compare=False)

    @property
    def end_s(self) -> float:
        """The end, or the last moment that was recorded."""
        if self.end is not None:
            return self.end.end_s
        events: tuple[Event, ...] = (*self.spans, *self.steps, *self.work, *self.collectives)
        return max((e.end_s for e in events), default=self.meta.start_s)


def event_line(event: Event) -> str:
    """One line of the file, with its newline. Fields that are None are left out."""
    return line_of(type(event), event)


def line_of(kind: type[Event], values: Sequence[Any]) -> str:
    """The line of an event that was not made yet: its class, and its fields in order.

    A step leaves hundreds of the first two kinds, so they are spelled out here, several times as fast as the encoder
    does it. Their texts are names of parts and axes, which need no escapes.
    """
    if kind is Work:
        part, start, end = values
        return f'{{"kind": "work", "part": "{part}", "start_s": {start!r}, "end_s": {end!r}}}\n'
    if kind is Collective:
        axis, ranks, sequence, nbytes, start, end = values
        who = f'"axis": "{axis}", "ranks": {list(ranks)!r}, "sequence": {sequence}, "bytes": {nbytes}'
        return f'{{"kind": "collective", {who}, "start_s": {start!r}, "end_s": {end!r}}}\n'
    fields = zip(kind._fields, values, strict=True)
    return _line(NAMES[kind], {name: value for name, value in fields if value is not None})


def meta_line(meta: Meta) -> str:
    return _line("meta", {"schema": SCHEMA} | _fields(meta))


def end_line(end: End) -> str:
    return _line("end", _fields(end))


def _fields(record: Meta | End) -> dict[str, Any]:
    return {f.name: value for f in fields(record) if (value := getattr(record, f.name)) is not None}


def _line(kind: str, values: Mapping[str, Any]) -> str:
    return ENCODE({"kind": kind, **values}) + "\n"


def read_events(path: Path) -> RankEvents | None:
    """The events of one file; None where not even its first line is whole.

    A rank may be killed while it writes, so lines that are not whole, or hold what they should not, are counted in
    `bad_lines`, not raised. Keys that this version does not know are passed over; another schema is a UserError.
    """
    found: dict[str, list[Any]] = {"meta": [], "end": [], **{name: [] for name in KINDS}}
    bad = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            kind, schema = values.pop("kind"), values.pop("schema", SCHEMA)
            if schema not in READABLE:
                raise UserError(f"{path} has telemetry of schema {schema}; this version reads schema 1 and 2")
            record = _decode(kind, values)
            if not fits(record):
                raise ValueError(f"a {kind} of wrong types")
            found[kind].append(record)
        except (ValueError, KeyError, TypeError, AttributeError):
            bad += 1
    if not found["meta"]:
        return None
    return RankEvents(
        meta=found["meta"][0],
        spans=tuple(found["span"]),
        steps=tuple(found["step"]),
        collectives=tuple(found["collective"]),
        work=tuple(found["work"]),
        end=found["end"][-1] if found["end"] else None,
        bad_lines=bad,
    )


def read_first_step(path: Path) -> tuple[Meta, Step] | None:
    """Who recorded the file, and its first step; None where that is not there yet. Reads no further than it must."""
    meta = None
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if meta is None or line.startswith('{"kind": "step"'):
                try:
                    values = json.loads(line)
                    record = _decode(values.pop("kind"), values)
                except (ValueError, KeyError, TypeError, AttributeError):
                    return None
                if meta is None and isinstance(record, Meta):
                    meta = record
                elif meta and isinstance(record, Step):
                    return meta, record
    return None


def _decode(kind: str, values: dict[str, Any]) -> Event | Meta | End:
    lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if kind in KINDS:
        event = KINDS[kind]
        return event(**{name: lists[name] for name in event._fields if name in lists})
    record = Meta if kind == "meta" else End
    return record(**{f.name: lists[f.name] for f in fields(record) if f.name in lists})
