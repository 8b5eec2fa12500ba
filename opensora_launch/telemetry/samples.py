"""What the samplers left: `telemetry/node-<host>.jsonl`, one file a node."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.errors import UserError

SCHEMA = 1


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


def read_samples(path: Path) -> NodeSamples | None:
    """What is whole in one file; None where not even its first line is. Another schema is a UserError."""
    found: dict[str, list[dict[str, Any]]] = {"meta": [], "sample": [], "xid": [], "refused": []}
    bad = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            found[values.pop("kind")].append(values)
        except (ValueError, KeyError, TypeError, AttributeError):
            bad += 1
    if not found["meta"]:
        return None
    meta = found["meta"][0]
    if meta.get("schema") != SCHEMA:
        raise UserError(f"{path} has samples of schema {meta.get('schema')}; this version reads schema {SCHEMA}")
    return NodeSamples(
        host=meta["host"],
        driver=meta["driver"],
        no_gpus=meta["no_gpus"],
        gpus=tuple(meta["gpus"]),
        samples=tuple(found["sample"]),
        xids=tuple(found["xid"]),
        refused=found["refused"][-1]["readings"] if found["refused"] else {},
        bad_lines=bad,
    )
