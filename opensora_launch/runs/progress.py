"""How far a run is, and how long it still takes: one answer for `status`, `top` and the progress of `generate`."""

from collections.abc import Sequence
from dataclasses import dataclass

from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Plan
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.files import read_plan
from opensora_launch.runs.finished_videos import sample_file
from opensora_launch.telemetry.events import Step, read_first_step, read_meta
from opensora_launch.telemetry.stall import Beat

# The rest is estimated once so much was done since work began: the share, or the steps in a long run.
_LEAST_SHARE, _LEAST_STEPS = 0.02, 5


@dataclass(frozen=True)
class WorkStart:
    """When the first denoising step of the attempts began, and the share of the videos that was done by then."""

    time_s: float  # of the epoch
    share: float
    least_share: float = _LEAST_SHARE  # must be done beyond that before the rest is estimated


@dataclass
class Pace:
    """How a run gets on. A view calls `look` with each set of heartbeats, then asks for the seconds left.

    `attempts` are those whose ranks work on the run: one, or several of an array of jobs.
    """

    attempts: Sequence[AttemptDir]
    share: float | None = None  # of all videos; it never goes back
    start: WorkStart | None = None

    def look(self, beats: Sequence[Beat]) -> None:
        share = share_done(beats)
        if share is None:
            return
        self.share = max(share, self.share or 0.0)  # a batch that is denoised and not yet saved has no step
        if self.start is None:
            self.start = work_start(self.attempts)

    def seconds_left(self, now: float) -> float | None:
        """`now` is the epoch's."""
        return seconds_left(self.share, self.start, now)


def share_done(beats: Sequence[Beat]) -> float | None:
    """The share of all videos that is done, counting the steps of unfinished ones; None before there is work.

    Every rank counts the videos that all ranks have finished, but may have counted some time ago. Ranks that work on
    the same batch report the same steps.
    """
    total = max((beat.videos for beat in beats), default=0)
    if not total:
        return None
    parts = {b.video: b.at_once * b.step / b.steps for b in beats if b.step is not None and b.steps}
    return min(max(beat.videos_done for beat in beats) + sum(parts.values()), total) / total


def seconds_left(share: float | None, start: WorkStart | None, now: float) -> float | None:
    """Seconds left at the pace since the first step, excluding loading; None if unknown or if nothing remains."""
    if share is None or start is None or share >= 1 or share - start.share < start.least_share:
        return None
    return (now - start.time_s) * (1 - share) / (share - start.share)


def work_start(attempts: Sequence[AttemptDir]) -> WorkStart | None:
    """When work began, by the ranks' events; None before any rank has finished a step."""
    paths = [path for attempt in attempts for path in attempt.all_events()]
    found = [(meta, step) for path in paths if (step := read_first_step(path)) and (meta := read_meta(path))]
    if not found:
        return None
    try:
        plan = read_plan(attempts[0].plan)
    except UserError:  # the folder is being removed
        return None
    time_s = min(meta.start_epoch_s + step.start_s - meta.start_s for meta, step in found)
    parts = {step.video: _part(plan, step) for _, step in found}
    before = sum(_finished_before(attempts[0].run, video.name, time_s) for video in plan.videos)
    steps = sum(video.guidance.num_steps for video in plan.videos) / (plan.sampling.batch_size or 1)
    least = min(_LEAST_SHARE, _LEAST_STEPS / max(1, steps))
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
