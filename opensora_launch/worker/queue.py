"""The queue of a run's batches, which groups of ranks and jobs of an array share, so that a slow batch delays no one.

The queue consists of files. The n-th group that takes a batch creates claims/<batch>.<n>.json exclusively. If the owner
of a claim is dead, another group adds claim n + 1, which again only one group can create. A batch is finished when all
its videos are made or have failed. The group that makes a video has no influence on the video.

Whether an owner is alive shows only by watching its heartbeat: one written a moment ago may have been the last.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from opensora_launch.plan.plan import VideoRequest
from opensora_launch.rundir import RunDir, create_once
from opensora_launch.runs.alive import ALIVE_S, is_long_ago, is_process_gone
from opensora_launch.runs.finished_videos import is_settled
from opensora_launch.telemetry.lines import read_json
from opensora_launch.telemetry.moves import Moves
from opensora_launch.telemetry.stall import Beat

QUEUE_POLL_S = 0.5  # between two looks at a heartbeat that must move or go stale
WAIT = -1  # of `take`: ask again in a moment


@dataclass(frozen=True)
class Owner:
    """The first rank of a group, in one attempt, which claims batches. `job` stays the same after a restart of the job.

    Host and process distinguish it from the owner of an earlier attempt of that name, whose folder was deleted.
    """

    attempt: str
    rank: int
    job: str
    host: str
    pid: int


class Queue:
    """The batches of a run, for the first rank of a group."""

    def __init__(
        self, run_dir: RunDir, batches: Sequence[Sequence[VideoRequest]], owner: Owner, *, until_settled: bool = False
    ) -> None:
        self._run_dir, self._batches, self._owner, self._until_settled = run_dir, batches, owner, until_settled
        self._taken: set[int] = set()
        self._moves = Moves()  # of heartbeats of other owners, and of claims that are not whole

    def take(self) -> int | None:
        """Return the index of a batch that this group now owns.

        None if every other batch is finished or, unless this queue lasts until all are, has a living owner. WAIT while
        that is uncertain for some batch.
        """
        certain, known = True, dict[Owner | None, bool | None]()
        for index, batch in enumerate(self._batches):
            if index in self._taken or self._is_settled(batch):
                continue
            ours = self._claim(batch[0].name, known)
            certain &= ours is not None and not (ours is False and self._until_settled)
            if not ours:
                continue
            self._taken.add(index)
            if not self._is_settled(batch):  # by an owner that has died meanwhile
                return index
        return None if certain else WAIT

    def _is_settled(self, batch: Sequence[VideoRequest]) -> bool:
        return all(is_settled(self._run_dir, video.name) for video in batch)

    def _claim(self, name: str, known: dict[Owner | None, bool | None]) -> bool | None:
        """Whether the batch is now ours; None if its owner may be alive or dead. known: which owners are alive."""
        folder = self._run_dir.claims
        folder.mkdir(exist_ok=True)
        found = (re.fullmatch(rf"{re.escape(name)}\.([0-9]+)\.json", path.name) for path in folder.iterdir())
        last = max((int(match[1]) for match in found if match), default=-1)
        if last >= 0:
            path = folder / f"{name}.{last}.json"
            owner = _read(path)
            if owner is None and self._moves.look(path, 0).still_s < ALIVE_S:
                return None  # it is being written
            if owner not in known:
                known[owner] = owner is not None and self._lives(owner)
            if known[owner] is not False:
                return None if known[owner] is None else False
        return create_once(folder / f"{name}.{last + 1}.json", json.dumps(vars(self._owner)))

    def _lives(self, owner: Owner) -> bool | None:
        """Whether an owner is alive; None if only the next look can show it."""
        beat = read_json(self._run_dir.attempt(owner.attempt).heartbeat(owner.rank), Beat)
        if beat is None or beat.state != "running" or (beat.host, beat.pid) != (owner.host, owner.pid):
            return False
        if owner.attempt == self._owner.attempt:
            return True  # if it dies, this rank ends too
        if self._owner.job and owner.job == self._owner.job:
            return False  # an earlier start of our own job, which cannot run twice
        if is_process_gone(beat):
            return False
        look = self._moves.look(owner, beat.time_s)
        if look.moved:
            return True
        return False if look.still_s >= ALIVE_S or is_long_ago(beat.time_s) else None


def _read(path: Path) -> Owner | None:
    """Return whom a claim names; None if it is not whole."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Owner)
    except (OSError, msgspec.MsgspecError):
        return None
