"""Runs that never ran, for the verbs that read them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opensora_launch.report.build import build_report
from tests.report.synthetic import a_plan, plain_simulation, write_run


def made_run(folder: Path, name: str, world: int, scale: float = 1.0, **changes: Any) -> Path:
    """A run on so many ranks that has its report; `scale` stretches its compute."""
    events = plain_simulation(world, scale=scale).events()
    run = write_run(folder / name, a_plan(world, **changes), [events], done=["0000_0"])
    build_report(run)
    return run


def sampled(attempt: Path, host: str, uuids: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> Path:
    """The file of a node's samples, each with its time and what it tells of `gpus` and `ranks`."""
    gpus = [{"index": n, "uuid": uuid, "name": "Stub GPU"} for n, uuid in enumerate(uuids)]
    meta = {"schema": 1, "host": host, "interval_s": 0.25, "driver": None, "no_gpus": None, "gpus": gpus}
    lines = [{"kind": "meta", **meta}, *({"kind": "sample", "host": {}, "ranks": [], "gpus": [], **s} for s in samples)]
    path = attempt / "telemetry" / f"node-{host}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def on_gpus(attempt: Path, uuids: Sequence[str]) -> None:
    """Ranks that have begun on these GPUs."""
    for rank, uuid in enumerate(uuids):
        path = attempt / "telemetry" / f"rank{rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"rank": rank, "start_epoch_s": 1.0, "device_uuid": uuid}) + "\n")
