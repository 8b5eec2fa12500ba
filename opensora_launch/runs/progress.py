"""How far a run is, and how long it still takes: one answer for `status`, `top` and the progress of `generate`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from opensora_launch.errors import UserError
from opensora_launch.plan.after_denoising import share_after_denoising
from opensora_launch.plan.plan import Plan
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.files import read_plan
from opensora_launch.runs.finished_videos import sample_file
from opensora_launch.telemetry.events import Step, read_first_step, read_meta
from opensora_launch.telemetry.stall import Beat

# The rest is estimated once so much was done since work began: the share, or the steps in a long run.
_LEAST_SHARE, _LEAST_STEPS = 0.02, 5
AFTER_STEPS = ("vae", "save")  # phases of a batch
MOST_UNFINISHED = 0.99  # what is shown of a run whose last video is not there yet


@dataclass(frozen=True)
class WorkStart:
    """When the first denoising step of the attempts began, and the share of the videos that was done by then."""

    time_s: float  # of the epoch
    share: float
    least_share: float = _LEAST_SHARE  # must be done beyond that before the rest is estimated


@dataclass
class Pace:
    """How a run gets on. A view calls `look` with each set of heartbeats, then asks for the seconds left.

    `attempts` are those whose ranks work on the run: one, or several of an array of jobs. What comes after the steps of
    a batch, the VAE and the files, counts as a share of its time: first the one that the plan's FLOPs give, and once a
    batch was seen to the end, the one that was measured.
    """

    attempts: Sequence[AttemptDir]
    share: float | None = None  # of all videos; it never goes back
    start: WorkStart | None = None
    after: float | None = None  # the share of a batch's time after its steps; None before it is known
    _batches: dict[tuple[str, int], "_Batch"] = field(default_factory=dict)  # by host and process

    def look(self, beats: Sequence[Beat]) -> None:
        beats = [beat for beat in beats if not beat.images]
        if self.after is None and any(beat.videos for beat in beats):
            self.after = _planned_after(self.attempts)
        for beat in beats:
            self._follow(beat)
        share = share_done(beats, self.after or 0.0, {b.rank: b.after for b in self._batches.values()})
        if share is None:
            return
        self.share = max(share, self.share or 0.0)
        if self.start is None:
            self.start = work_start(self.attempts, self.after or 0.0)

    def seconds_left(self, now: float) -> float | None:
        """`now` is the epoch's. None too where a batch takes longer after its steps than was expected: nobody knows."""
        late = any(batch.after >= 1 for batch in self._batches.values())
        return None if late else seconds_left(self.share, self.start, now)

    def _follow(self, beat: Beat) -> None:
        """Note when a rank's batch was first seen in its steps, and when after them."""
        key, after = (beat.host, beat.pid), self.after or 0.0
        batch = self._batches.get(key)
        if beat.state == "running" and beat.step is not None:
            if batch is None or batch.after_s is not None:
                self._measure(batch, beat)
                self._batches[key] = _Batch(beat.rank, beat.time_s)
        elif beat.state == "running" and beat.phase in AFTER_STEPS and batch:
            if batch.after_s is None:
                batch.after_s = beat.time_s
            expected_s = (batch.after_s - batch.begun_s) * after / max(1e-6, 1 - after)
            batch.after = min(1.0, (beat.time_s - batch.after_s) / max(1e-6, expected_s))
        elif batch and beat.phase != "queue":
            self._measure(self._batches.pop(key), beat)

    def _measure(self, batch: "_Batch | None", beat: Beat) -> None:
        if batch and batch.after_s is not None and beat.time_s > batch.begun_s:
            self.after = (beat.time_s - batch.after_s) / (beat.time_s - batch.begun_s)


@dataclass
class _Batch:
    """What a rank works on: since when it was seen in its steps and after them, and the share that is done of that."""

    rank: int
    begun_s: float
    after_s: float | None = None
    after: float = 0.0


def _planned_after(attempts: Sequence[AttemptDir]) -> float | None:
    try:
        return share_after_denoising(read_plan(attempts[0].plan))
    except (UserError, IndexError):  # the folder is being removed; no attempt works
        return None


def share_done(
    beats: Sequence[Beat], after: float = 0.0, after_done: Mapping[int, float] = MappingProxyType({})
) -> float | None:
    """The share of all videos that is done, counting unfinished ones; None before there is work.

    `after` is the share of a batch's time that comes after its steps, and `after_done` how much of that each rank has
    done. Every rank counts the videos that all ranks have finished, but may have counted some time ago. Ranks that
    work on the same batch report the same steps.
    """
    total = max((beat.videos for beat in beats), default=0)
    if not total:
        return None
    done, parts = max(beat.videos_done for beat in beats), dict[str | None, float]()
    for b in beats:
        if b.step is not None and b.steps:
            parts[b.video] = b.at_once * (1 - after) * b.step / b.steps
        elif b.rank in after_done and b.phase in AFTER_STEPS:
            parts[b.video] = b.at_once * (1 - after * (1 - after_done[b.rank]))
    share = min(done + sum(parts.values()), total) / total
    return share if done == total else min(share, MOST_UNFINISHED)


def seconds_left(share: float | None, start: WorkStart | None, now: float) -> float | None:
    """Seconds left at the pace since the first step, excluding loading; None if unknown or if nothing remains."""
    if share is None or start is None or share >= 1 or share - start.share < start.least_share:
        return None
    return (now - start.time_s) * (1 - share) / (share - start.share)


def work_start(attempts: Sequence[AttemptDir], after: float = 0.0) -> WorkStart | None:
    """When work began, by the ranks' events; None before any rank has finished a step. `after` as in share_done."""
    paths = [path for attempt in attempts for path in attempt.all_events()]
    found = [(meta, step) for path in paths if (step := read_first_step(path)) and (meta := read_meta(path))]
    if not found:
        return None
    try:
        plan = read_plan(attempts[0].plan)
    except UserError:  # the folder is being removed
        return None
    time_s = min(meta.start_epoch_s + step.start_s - meta.start_s for meta, step in found)
    parts = {step.video: (1 - after) * _part(plan, step) for _, step in found}
    before = sum(_finished_before(attempts[0].run, video.name, time_s) for video in plan.videos)
    steps = sum(video.guidance.num_steps for video in plan.videos) / (plan.sampling.batch_size or 1)
    least = (1 - after) * min(_LEAST_SHARE, _LEAST_STEPS / max(1, steps))
    return WorkStart(time_s, (before + sum(parts.values())) / len(plan.videos), least)


def _part(plan: Plan, step: Step) -> float:
    """How many videos' worth of its batch was done before a step: more than 0 where the batch was resumed."""
    steps = next((v.guidance.num_steps for v in plan.videos if v.name == step.video), step.step)
    return (plan.sampling.batch_size or 1) * step.step / max(1, steps)


def _finished_before(run: RunDir, video: str, time_s: float) -> bool:
    try:
        file = sample_file(run, video)
        return file is not None and file.stat().st_mtime < time_s
    except OSError:
        return False
