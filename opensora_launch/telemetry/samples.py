"""What the samplers left: `telemetry/node-<host>.jsonl`, one file a node."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.telemetry.typed import is_number

SCHEMA = 1
META = ("host", "driver", "no_gpus")
GPU_WORDS, GPU_FACTS = ("uuid", "name", "mig_of"), {"index", "uuid", "name"}


def bare_uuid(uuid: str) -> str:
    """Without NVML's "GPU-" or, of a MIG instance, "MIG-": torch's has neither."""
    return uuid.removeprefix("GPU-").removeprefix("MIG-")


@dataclass(frozen=True)
class NodeSamples:
    """One node's file. Each sample has `time_s`, `host`, `ranks` and `gpus`."""

    host: str
    driver: str | None
    no_gpus: str | None  # why no GPU was seen
    gpus: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...]
    xids: tuple[Mapping[str, Any], ...]
    refused: Mapping[str, str]
    bad_lines: int
    problem: str | None = None  # why the sampler stopped before the run did


def _is_meta(values: Mapping[str, Any]) -> bool:
    said = all(isinstance(values[name], str) or (values[name] is None and name != "host") for name in META)
    return said and all(_is_gpu(gpu) and gpu.keys() >= GPU_FACTS for gpu in values["gpus"])


def _is_gpu(values: Mapping[str, Any]) -> bool:
    """Numbers but for names and lists; what the driver did not tell is not there."""
    rest = {name: value for name, value in values.items() if name not in (*GPU_WORDS, "throttled", "processes")}
    words = all(isinstance(values[name], str) for name in GPU_WORDS if name in values)
    listed = all(isinstance(why, str) for why in values.get("throttled", ()))
    return words and listed and isinstance(values.get("processes", []), list) and _numbers(rest)


def _is_sample(values: Mapping[str, Any]) -> bool:
    ranks = all(_numbers(rank) and isinstance(rank["rank"], int) for rank in values["ranks"])
    return is_number(values["time_s"]) and _numbers(values["host"]) and ranks and all(map(_is_gpu, values["gpus"]))


def _is_xid(values: Mapping[str, Any]) -> bool:
    return is_number(values["time_s"]) and isinstance(values["uuid"], str) and isinstance(values["xid"], int)


def _numbers(values: Mapping[str, Any]) -> bool:
    return all(map(is_number, values.values()))


RIGHT: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "meta": _is_meta,
    "sample": _is_sample,
    "xid": _is_xid,
    "refused": lambda values: all(isinstance(why, str) for why in values["readings"].values()),
    "problem": lambda values: isinstance(values["why"], str),
}


def read_samples(path: Path, last_bytes: int | None = None) -> NodeSamples | None:
    """What is whole in one file, or in its first line and its last bytes; None where not even its first line is.

    Another schema is a UserError. Lines that hold what they should not are counted in `bad_lines`.
    """
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in RIGHT}
    bad = 0
    for line in _read(path, last_bytes).decode("utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            kind = values.pop("kind")
            if kind == "meta" and values["schema"] != SCHEMA:
                raise UserError(f"{path} has samples of schema {values['schema']}; this version reads schema {SCHEMA}")
            if not RIGHT[kind](values):
                raise ValueError(f"a {kind} of wrong types")
            found[kind].append(values)
        except (ValueError, KeyError, TypeError, AttributeError):
            bad += 1
    if not found["meta"]:
        return None
    meta = found["meta"][0]
    return NodeSamples(
        host=meta["host"],
        driver=meta["driver"],
        no_gpus=meta["no_gpus"],
        gpus=tuple(meta["gpus"]),
        samples=tuple(found["sample"]),
        xids=tuple(found["xid"]),
        refused=found["refused"][-1]["readings"] if found["refused"] else {},
        bad_lines=bad,
        problem=found["problem"][-1]["why"] if found["problem"] else None,
    )


def _read(path: Path, last_bytes: int | None) -> bytes:
    with path.open("rb") as file:
        first, end = file.readline(), file.seek(0, os.SEEK_END)
        begin = len(first) if last_bytes is None else max(len(first), end - last_bytes)
        file.seek(max(0, begin - 1))
        file.readline()  # the rest of the line that begins before
        return first + file.read()
