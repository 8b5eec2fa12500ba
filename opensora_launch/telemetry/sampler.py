"""One thread per node samples its GPUs, CPUs and ranks a few times per second: `telemetry/node-<host>.jsonl`.

Times are the host's `time.monotonic()`, like those of the ranks' events. A sampler never stops a run: readings that
fail are listed in the file, and `problem` is the error that ended it early.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

from opensora_launch.machine.host import host_sample, rank_samples
from opensora_launch.machine.nvml import Gpus, open_gpus
from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.heartbeat import read_heartbeats
from opensora_launch.telemetry.samples import SAMPLES_SCHEMA

SAMPLE_INTERVAL_S = 0.25
SHUT_S = 5.0  # a call of the driver may hang; the run waits no longer than this


class Sampler:
    """`start` it on the first rank of a node, and `close` it at the end. `pids` returns the ranks of this host."""

    def __init__(
        self, path: Path, host: str, pids: Callable[[], Mapping[int, int]], *, interval_s: float = SAMPLE_INTERVAL_S
    ) -> None:
        self.problem: str | None = None
        self._path, self._host, self._pids, self._interval_s = path, host, pids, interval_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take a last sample and stop. A thread that hangs in the driver is left behind."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(SHUT_S)

    def _run(self) -> None:
        try:
            gpus, why_not = open_gpus()
            with closing(gpus) if gpus else nullcontext():
                self._sample_all(gpus, why_not)
        except Exception as error:  # noqa: BLE001 a broken driver must not stop the run
            self.problem = f"{type(error).__name__}: {error}"
            with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": "problem", "why": self.problem}, ensure_ascii=False) + "\n")

    def _sample_all(self, gpus: Gpus | None, why_not: str | None) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("w", encoding="utf-8") as file:

            def write(kind: str, values: Mapping[str, Any]) -> None:
                file.write(json.dumps({"kind": kind, **values}, ensure_ascii=False) + "\n")
                file.flush()

            write("meta", self._meta(gpus, why_not))
            written: dict[str, str] = {}
            ending = False
            while True:
                write("sample", self._sample(gpus))
                for xid in gpus.xids() if gpus else ():
                    write("xid", {"time_s": time.monotonic(), **xid})
                if gpus and (refused := gpus.refused()) != written:
                    written = refused
                    write("refused", {"readings": refused})
                if ending:
                    break
                ending = self._ending.wait(self._interval_s)

    def _meta(self, gpus: Gpus | None, why_not: str | None) -> dict[str, Any]:
        return {
            "schema": SAMPLES_SCHEMA,
            "host": self._host,
            "interval_s": self._interval_s,
            "driver": gpus.driver if gpus else None,
            "no_gpus": why_not,
            "gpus": [gpu.facts() for gpu in gpus.gpus] if gpus else [],
        }

    def _sample(self, gpus: Gpus | None) -> dict[str, Any]:
        return {
            "time_s": time.monotonic(),
            "host": host_sample(),
            "ranks": rank_samples(self._pids()),
            "gpus": gpus.sample() if gpus else [],
        }


def node_sampler(attempt: AttemptDir, host: str) -> Sampler:
    """The sampler of this node. It finds the ranks' processes by heartbeats, which it reads when a new one appears."""
    folder, known = attempt.heartbeats, dict[int, int]()
    files = 0

    def pids() -> Mapping[int, int]:
        nonlocal files
        there = sum(name.startswith("rank") for name in os.listdir(folder)) if folder.is_dir() else 0
        if there != files:
            beats = read_heartbeats(folder)
            known.update({b.rank: b.pid for b in beats if b.host == host})
            files = len(beats)
        return known

    return Sampler(attempt.samples_of(host), host, pids)
