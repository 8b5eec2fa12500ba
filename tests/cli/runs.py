"""Runs that never ran, for the verbs that read them."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from opensora_launch.report.build import build_report
from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.events import Meta, Step, record_line
from opensora_launch.telemetry.stall import Beat
from tests.report.synthetic import a_plan, plain_simulation, write_run
from tests.telemetry.lines import event_line


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
        path = AttemptDir(attempt).events(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record_line(_meta(rank, 1.0, device_uuid=uuid)))


def work_began(attempt: Path, start_epoch_s: float, *steps: int, rank: int = 0) -> None:
    """The events of a rank that has finished these steps of the first video, ten seconds each."""
    path = AttemptDir(attempt).events(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [event_line(Step("0000_0", step, 2, 2, "x", 10.0 * n, 10.0 * n + 10)) for n, step in enumerate(steps)]
    path.write_text(record_line(_meta(rank, start_epoch_s)) + "".join(lines))


def _meta(rank: int, start_epoch_s: float, **more: Any) -> Meta:
    facts: dict[str, Any] = {
        "world": 2,
        "local_rank": rank,
        "host": "h",
        "device": "cpu",
        "device_name": "c",
        "threads": 1,
    }
    return Meta(rank=rank, start_s=0.0, start_epoch_s=start_epoch_s, layouts={}, **facts, **more)


def beat(rank: int = 0, **more: object) -> Beat:
    last = Beat(rank, socket.gethostname(), os.getpid(), time.time(), "running", "denoise", "0000_0", 2, 6, 0, 2)
    return replace(last, **more)  # type: ignore[arg-type]


def write_beats(attempt: Path, *beats: Beat) -> None:
    for each in beats:
        (attempt / "heartbeat" / f"rank{each.rank}.json").write_text(json.dumps(asdict(each)))
