"""Batches are taken from a queue, so that a slow one holds nobody: groups of ranks and jobs of an array share it.

The queue is files. claims/<batch>.<n>.json is created exclusively by the n-th group that takes the batch; a claim whose
owner is dead is answered by a claim n + 1, which again only one can create. A batch is finished when all its videos
have their record. Which group makes a video decides nothing about the video.

Whether an owner lives is seen by watching its heartbeat: one that was written a moment ago may have been the last.
"""

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from opensora_launch.plan.plan import VideoRequest
from opensora_launch.rundir import RunDir, create_once
from opensora_launch.telemetry.heartbeat import read_beat
from opensora_launch.worker.start import lives

STALE_S = 30.0  # without a heartbeat, of which there are two a second: its host is gone
LOOK_S = 0.5  # between two looks at a heartbeat that must move or go stale
WATCHED_S = 5.0  # an older look at a heartbeat says nothing of now
WAIT = -1  # of `take`: ask again in a moment


@dataclass(frozen=True)
class Owner:
    """Who claims: the first rank of a group, in one attempt. `job` is the same after a restart of the job.

    Host and process tell it from the owner of an earlier attempt of that name, whose folder was deleted.
    """

    attempt: str
    rank: int
    job: str
    host: str
    pid: int


class Claimant(NamedTuple):
    """An owner as its claim names it."""

    attempt: str
    rank: str
    job: str
    host: str
    pid: str


@dataclass
class _Look:
    """What was seen of a heartbeat: its time, since when that was it, and when it was looked at last."""

    time_s: float
    since_s: float
    last_s: float


class Queue:
    """The batches of a run, for the first rank of a group."""

    def __init__(self, run_dir: RunDir, batches: Sequence[Sequence[VideoRequest]], owner: Owner) -> None:
        self._run_dir, self._batches, self._owner = run_dir, batches, owner
        self._taken: set[int] = set()
        self._looks: dict[Claimant, _Look] = {}

    def take(self) -> int | None:
        """The index of a batch that is now ours; None when every other one is finished or in living hands; WAIT while
        that is not certain of some.
        """
        certain, known = True, dict[Claimant, bool | None]()
        for index, batch in enumerate(self._batches):
            if index in self._taken or finished(self._run_dir, batch):
                continue
            ours = self._claim(batch[0].name, known)
            certain &= ours is not None
            if not ours:
                continue
            self._taken.add(index)
            if not finished(self._run_dir, batch):  # by the owner that has died meanwhile
                return index
        return None if certain else WAIT

    def _claim(self, name: str, known: dict[Claimant, bool | None]) -> bool | None:
        """Whether the batch is now ours; None where it is not certain that its owner lives. `known`: who does."""
        folder = self._run_dir.claims
        folder.mkdir(exist_ok=True)
        last = max((int(p.name.rsplit(".", 2)[1]) for p in folder.glob(f"{name}.*.json")), default=-1)
        if last >= 0:
            path = folder / f"{name}.{last}.json"
            claim = _read(path)
            if not claim and time.time() - path.stat().st_mtime < STALE_S:
                return None  # it is being written
            owner = Claimant(*(str(claim.get(name)) for name in Claimant._fields))
            if owner not in known:
                known[owner] = self._lives(owner)
            if known[owner] is not False:
                return None if known[owner] is None else False
        return create_once(folder / f"{name}.{last + 1}.json", json.dumps(vars(self._owner)))

    def _lives(self, owner: Claimant) -> bool | None:
        """Whether an owner works; None while only the next look can tell."""
        beat = read_beat(self._run_dir.attempt(owner.attempt).heartbeat(owner.rank))
        if beat is None or beat.state != "running" or (beat.host, str(beat.pid)) != (owner.host, owner.pid):
            return False
        if owner.attempt == self._owner.attempt:
            return True  # if it dies, so do we
        if self._owner.job and owner.job == self._owner.job:
            return False  # an earlier start of our own job, which cannot run twice
        if beat.host == socket.gethostname() and not lives(beat.pid):
            return False
        return self._moves(owner, beat.time_s)

    def _moves(self, owner: Claimant, time_s: float) -> bool | None:
        """Whether a heartbeat has moved since the last look; False once it stands for STALE_S, by its clock or ours."""
        now = time.monotonic()
        look = self._looks.get(owner)
        if look and now - look.last_s < WATCHED_S:
            moved = look.time_s != time_s
            since_s = now if moved else look.since_s
        else:
            moved, since_s = False, now
        self._looks[owner] = _Look(time_s, since_s, now)
        if moved:
            return True
        return False if max(time.time() - time_s, now - since_s) >= STALE_S else None


def finished(run_dir: RunDir, videos: Sequence[VideoRequest]) -> bool:
    """Whether each has its record of completion."""
    return all(run_dir.record(video.name).exists() for video in videos)


def _read(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return facts
    except (OSError, ValueError):
        return {}
