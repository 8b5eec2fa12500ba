"""Samples of each node during a run: `telemetry/node-<host>.jsonl`, one file per node."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict

import msgspec

from opensora_launch.telemetry.lines import read_lines

SAMPLES_SCHEMA = 1
Number = int | float


class GpuIdentity(TypedDict, total=False):
    """A GPU or a MIG instance, in the order of every sample's `gpus`. Facts that the driver refuses are missing."""

    index: Required[int]
    uuid: Required[str]
    name: Required[str]
    mig_of: str  # the UUID of its GPU
    memory_bytes: Number
    power_limit_w: Number
    sm_mhz_max: Number


class GpuSample(TypedDict, total=False):
    """Readings of a GPU; those that the driver refuses, or that were not due yet, are missing."""

    gpu: int
    util: Number  # 0 to 1, as the next
    memory_util: Number
    memory_used_bytes: Number
    power_w: Number
    energy_j: Number
    sm_mhz: Number
    memory_mhz: Number
    throttled: list[str]
    nvlink_tx_bytes: Number  # since the driver was loaded
    nvlink_rx_bytes: Number
    temperature_c: Number
    pcie_tx_bytes_per_s: Number
    pcie_rx_bytes_per_s: Number
    ecc_corrected: Number
    ecc_uncorrected: Number
    processes: list[Any]  # [pid, bytes]


class RankSample(TypedDict, total=False):
    """What a rank's process has used since its start."""

    rank: Required[int]
    cpu_s: Number
    major_faults: Number
    memory_bytes: Number
    ran_s: Number  # its main thread on a CPU
    starved_s: Number  # its main thread waiting for one


class NodeSample(TypedDict):
    time_s: float
    host: dict[str, Number]
    ranks: list[RankSample]
    gpus: list[GpuSample]


class Xid(TypedDict):
    """A critical error that the driver reported."""

    time_s: float
    uuid: str
    xid: int


class _Meta(msgspec.Struct):
    schema: int
    host: str
    driver: str | None
    no_gpus: str | None
    gpus: list[GpuIdentity]


class _Refused(msgspec.Struct):
    readings: dict[str, str]


class _Problem(msgspec.Struct):
    why: str


_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "meta": msgspec.json.Decoder(_Meta),
    "sample": msgspec.json.Decoder(NodeSample),
    "xid": msgspec.json.Decoder(Xid),
    "refused": msgspec.json.Decoder(_Refused),
    "problem": msgspec.json.Decoder(_Problem),
}


def bare_uuid(uuid: str) -> str:
    """Remove NVML's "GPU-" or "MIG-": torch writes UUIDs without."""
    return uuid.removeprefix("GPU-").removeprefix("MIG-")


def gpu_readings(samples: Sequence[Mapping[str, Any]], place: int) -> list[dict[str, Any]]:
    """The readings of one GPU in each sample; {} where it has none."""
    return [sample["gpus"][place] if place < len(sample["gpus"]) else {} for sample in samples]


def rank_readings(samples: Sequence[Mapping[str, Any]], rank: int) -> list[dict[str, Any]]:
    """The readings of one rank in each sample; {} where it has none."""
    return [next((found for found in sample["ranks"] if found["rank"] == rank), {}) for sample in samples]


@dataclass(frozen=True)
class NodeSamples:
    """One node's file."""

    host: str
    driver: str | None
    no_gpus: str | None  # why no GPU was seen
    gpus: tuple[Mapping[str, Any], ...]  # GpuIdentity, and NodeSample and Xid below
    samples: tuple[Mapping[str, Any], ...]
    xids: tuple[Mapping[str, Any], ...]
    refused: Mapping[str, str]  # reading -> why the driver refused it
    bad_lines: int
    problem: str | None = None  # why the sampler stopped before the run did


def read_samples(path: Path, last_bytes: int | None = None) -> NodeSamples | None:
    """What is whole in one file, or in its first line and its last bytes; None if not even its first line is.

    Lines that hold what they should not are counted in `bad_lines`. Raises UserError for another schema.
    """
    text = _read(path, last_bytes).decode("utf-8", errors="replace")
    found, bad = read_lines(text, _DECODERS, schemas=(SAMPLES_SCHEMA,), path=path)
    if not found["meta"]:
        return None
    meta = found["meta"][0]
    return NodeSamples(
        host=meta.host,
        driver=meta.driver,
        no_gpus=meta.no_gpus,
        gpus=tuple(meta.gpus),
        samples=tuple(found["sample"]),
        xids=tuple(found["xid"]),
        refused=found["refused"][-1].readings if found["refused"] else {},
        bad_lines=bad,
        problem=found["problem"][-1].why if found["problem"] else None,
    )


def _read(path: Path, last_bytes: int | None) -> bytes:
    with path.open("rb") as file:
        first, end = file.readline(), file.seek(0, os.SEEK_END)
        begin = len(first) if last_bytes is None else max(len(first), end - last_bytes)
        file.seek(max(0, begin - 1))
        file.readline()  # the rest of the line that begins before
        return first + file.read()
