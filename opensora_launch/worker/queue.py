"""Batches are taken from a queue, so that a slow one holds nobody: groups of ranks and jobs of an array share it.

The queue is files. claims/<batch>.<n>.json is created exclusively by the n-th group that takes the batch; a claim whose
owner is dead is answered by a claim n + 1, which again only one can create. A batch is finished when all its videos
have their record. Which group makes a video decides nothing about the video.
"""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.plan.plan import VideoRequest
from opensora_launch.telemetry.heartbeat import read_beat
from opensora_launch.worker.start import lives

STALE_S = 30.0  # without a heartbeat, of which there are two a second: its host is gone


@dataclass(frozen=True)
class Owner:
    """Who claims: the first rank of a group, in one attempt. `job` is the same after a restart of the job."""

    attempt: str
    rank: int
    job: str


class Queue:
    """The batches of a run, for the first rank of a group."""

    def __init__(self, run_dir: Path, batches: Sequence[Sequence[VideoRequest]], owner: Owner) -> None:
        self._run_dir, self._batches, self._owner = run_dir, batches, owner
        self._taken: set[int] = set()

    def take(self) -> int | None:
        """The index of a batch that is now ours; None when every other one is finished or in living hands."""
        for index, batch in enumerate(self._batches):
            if index in self._taken or finished(self._run_dir, batch) or not self._claim(batch[0].name):
                continue
            self._taken.add(index)
            if not finished(self._run_dir, batch):  # by the owner that has died meanwhile
                return index
        return None

    def _claim(self, name: str) -> bool:
        folder = self._run_dir / "claims"
        folder.mkdir(exist_ok=True)
        last = max((int(p.name.rsplit(".", 2)[1]) for p in folder.glob(f"{name}.*.json")), default=-1)
        if last >= 0 and self._alive(_read(folder / f"{name}.{last}.json")):
            return False
        return _create(folder / f"{name}.{last + 1}.json", vars(self._owner))

    def _alive(self, claim: Mapping[str, Any]) -> bool:
        if claim.get("attempt") == self._owner.attempt:
            return True
        if claim.get("job") and claim.get("job") == self._owner.job:
            return False  # an earlier start of our own job, which cannot run twice
        beats = self._run_dir / "attempts" / str(claim.get("attempt")) / "heartbeat"
        beat = read_beat(beats / f"rank{claim.get('rank')}.json")
        if beat is None or beat.state != "running":
            return False
        if beat.host == socket.gethostname() and not lives(beat.pid):
            return False
        return time.time() - beat.time_s < STALE_S


def finished(run_dir: Path, videos: Sequence[VideoRequest]) -> bool:
    """Whether each has its record of completion."""
    return all((run_dir / "samples" / f"{video.name}.json").exists() for video in videos)


def _create(path: Path, facts: Mapping[str, Any]) -> bool:
    """The file with its contents at once, or False if somebody else has made it."""
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    aside.write_text(json.dumps(facts), encoding="utf-8")
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        return _create_empty(path, json.dumps(facts))
    finally:
        aside.unlink(missing_ok=True)
    return True


def _create_empty(path: Path, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return facts
    except (OSError, ValueError):
        return {}
