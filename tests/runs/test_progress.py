"""How far an attempt is and how long it still takes, from heartbeats and events."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.plan.plan import Machine
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.progress import Pace, WorkStart, seconds_left, share_done, work_start
from opensora_launch.telemetry.stall import Beat
from tests.cli.runs import work_began
from tests.samples import finish_video


def beat(phase: str = "denoise", **more: Any) -> Beat:
    given: dict[str, Any] = {
        "rank": 0,
        "host": "h",
        "pid": 1,
        "time_s": 1.0,
        "state": "running",
        "phase": phase,
        "videos": 4,
    }
    return Beat(**(given | more))


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AttemptDir:
    monkeypatch.chdir(tmp_path)
    words = [*(word for text in "abcd" for word in ("--prompt", text)), "model=tiny", "sampling.num_steps=8"]
    return prepare_attempt(words, Machine("cpu", 1, 2, 2))


def test_videos_that_several_groups_make_at_once() -> None:
    """Two ranks a video: half of each of two is one of four, and a rank may not know yet of the one that was saved."""
    half, other = beat(video="0001_0", step=5, steps=10), beat(video="0002_0", step=5, steps=10)
    assert share_done([half, half, other, other]) == 0.25
    assert share_done([half, replace(half, videos_done=1), other, other]) == 0.5
    assert share_done([replace(half, videos=0), beat("save", videos_done=4), other]) == 1.0
    assert share_done([beat(step=2, steps=8, at_once=4)]) == 0.25, "four videos are at step 2"


def test_loading_does_not_count_and_saving_does_not_set_it_back(attempt: AttemptDir) -> None:
    pace = Pace([attempt])
    for at in (beat("load", videos=0), beat("text"), beat(step=0, steps=8)):
        pace.look([at])
        assert pace.seconds_left(1_000_100.0) is None
    work_began(attempt.path, 1_000_100.0, 0, 1)
    pace.look([beat(step=2, steps=8)])
    done = 0.25 * (1 - (pace.after or 0))
    assert pace.seconds_left(1_000_120.0) == pytest.approx(20 * (4 - done) / done)
    pace.look([beat("text")])
    assert pace.share == done / 4
    assert pace.seconds_left(1_000_125.0) == pytest.approx(25 * (4 - done) / done)
    pace.look([beat("save", videos_done=4)])
    assert (pace.share, pace.seconds_left(1_000_300.0)) == (1, None), "nothing is left"


def test_the_vae_counts(attempt: AttemptDir) -> None:
    """As the plan expects it in the first batch, and as it was measured in the next one."""
    pace = Pace([attempt])
    pace.look([beat(time_s=100.0, step=0, steps=8)])
    work_began(attempt.path, 1_000_100.0, 0)
    pace.look([beat(time_s=107.0, step=7, steps=8)])
    planned = pace.after or 0.0
    assert 0.5 < planned < 0.99, "the VAE of the tiny model takes longer than its transformer"
    left = pace.seconds_left(1_000_107.0) or 0.0
    assert left == pytest.approx(7 / 7 * 8 / (1 - planned) * 4 - 7, rel=0.01)
    pace.look([beat("vae", time_s=108.0)])
    half = 8 * planned / (1 - planned) / 2
    pace.look([beat("vae", time_s=108.0 + half)])
    assert pace.share == pytest.approx((1 - planned / 2) / 4)
    assert pace.seconds_left(1_000_108.0 + half) == pytest.approx((8 + half) * (4 / (1 - planned / 2) - 1))
    pace.look([beat("vae", time_s=108.0 + 2 * half)])
    assert pace.seconds_left(1_000_200.0) is None, "it takes longer than expected, and nobody knows how long"
    pace.look([beat("save", time_s=131.0)])
    pace.look([beat(time_s=132.0, step=0, steps=8, video="0001_0", videos_done=1)])
    assert pace.after == pytest.approx(24 / 32)
    assert pace.seconds_left(1_000_132.0) == pytest.approx(32 * 3)


def test_a_run_is_not_done_before_its_last_video_is(attempt: AttemptDir) -> None:
    assert share_done([beat(step=8, steps=8, videos=1)]) == 0.99
    assert share_done([beat("save", videos=1, videos_done=1)]) == 1.0


def test_what_an_earlier_attempt_has_done_does_not_count(attempt: AttemptDir) -> None:
    """A batch that was resumed at step 4 of 8, and a video of the same plan that was finished before."""
    work_began(attempt.path, 1_000_100.0, 4, 5)
    file = finish_video(attempt.run.path, "0003_0")
    for written, share in ((1_000_099.0, 0.375), (1_000_101.0, 0.125)):
        os.utime(file, (written, written))
        assert work_start([attempt]) == WorkStart(1_000_100.0, share)
    assert seconds_left(0.25, WorkStart(1_000_100.0, 0.125), 1_000_120.0) == pytest.approx(20 * 0.75 / 0.125)


def test_no_estimate_from_too_little() -> None:
    start = WorkStart(0.0, 0.5)
    assert seconds_left(None, start, 9.0) is seconds_left(0.6, None, 9.0) is None
    assert seconds_left(0.51, start, 9.0) is None
    assert seconds_left(0.75, start, 10.0) == pytest.approx(10.0)


def test_events_that_are_torn_give_no_start(attempt: AttemptDir) -> None:
    work_began(attempt.path, 1_000_100.0, 0)
    whole = attempt.events(0).read_text()
    for end in (5, whole.index("step") + 20, len(whole) - 9):
        attempt.events(0).write_text(whole[:end])
        assert work_start([attempt]) is None


def test_a_long_run_is_estimated_after_a_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2% of 3000 steps are 60, which may take hours."""
    monkeypatch.chdir(tmp_path)
    words = [*(word for text in "abc" for word in ("--prompt", text)), "model=tiny", "sampling.num_steps=1000"]
    attempt = prepare_attempt(words, Machine("cpu", 1, 1, 1))
    work_began(attempt.path, 1_000_100.0, 0)
    start = work_start([attempt])
    assert start
    assert seconds_left(4 / 3000, start, 1_000_140.0) is None
    assert seconds_left(6 / 3000, start, 1_000_160.0) == pytest.approx(60 * 2994 / 6)
