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
    assert pace.seconds_left(1_000_120.0) == pytest.approx(20 * (4 - 0.25) / 0.25)
    pace.look([beat("vae")])
    assert pace.share == 0.25 / 4
    assert pace.seconds_left(1_000_125.0) == pytest.approx(25 * (4 - 0.25) / 0.25)
    pace.look([beat("save", videos_done=4)])
    assert (pace.share, pace.seconds_left(1_000_300.0)) == (1, None), "nothing is left"


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
