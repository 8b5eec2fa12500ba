"""What a batch script asks of our Python: its attempts, and whether it may start again."""

import os
from pathlib import Path

import pytest

from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Machine
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.request.slurm_task import (
    FRUITLESS,
    attempt_by_hand,
    attempt_of_launcher,
    main,
    requeue_problem,
    run_file_of,
)
from opensora_launch.request.write_run import attempt_like
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.files import read_plan
from opensora_launch.runs.state import Launched, read_attempts, record_launch
from opensora_launch.telemetry.events import PhaseSpan, Step, line_of

ENV = {"SLURM_JOB_ID": "60"}
LOADED = line_of(PhaseSpan, ["load", 0.0, 1.0, None])
SAVED = line_of(PhaseSpan, ["save", 0.0, 1.0, "0000_0"])
STEP = line_of(Step, ["0000_0", 1, 8, 8, "cp1", 0.0, 1.0])


@pytest.fixture
def made(empty_folder: Path) -> AttemptDir:
    """The first attempt of a run of seven videos, which the launcher has made."""
    prompts = [word for i in range(7) for word in ("--prompt", f"prompt {i}")]
    machine = Machine("cpu", 1, 1, 1)
    return prepare_attempt([*prompts, "model=tiny", "launcher=slurm", "topology=cpu1"], machine)


def start(made: AttemptDir) -> AttemptDir:
    return attempt_of_launcher(made, ENV)


def test_the_tasks_of_an_array_make_their_folders(made: AttemptDir) -> None:
    """Only the first task has one before it starts, and only for its first start."""
    for folder in (made.started, made.launcher):
        folder.unlink(missing_ok=True)
    for task, number in ((2, 1), (0, 0), (1, 2), (0, 3)):
        attempt = attempt_of_launcher(made, {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)})
        assert attempt.number == number
        assert [a.launched.job for a in read_attempts(made.run) if a.number == number and a.launched] == [f"7_{task}"]
        assert read_plan(attempt.plan) == read_plan(made.plan)


def test_a_job_is_requeued_until_its_starts_come_to_nothing(
    made: AttemptDir, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(FRUITLESS - 1):
        last = start(made)
        assert requeue_problem(last, "lost: n2", ENV) is None
        assert last.requeued.read_text() == "lost: n2\n"
    last = start(made)
    assert main(["--requeue", str(last), "lost: n3"]) == 0  # of another job: here there is no SLURM_JOB_ID
    said = requeue_problem(last, "lost: n3", ENV)
    assert said is not None
    assert "the last 3 starts of this job made no step (this one: lost: n3), so it is not requeued again" in said
    assert f"opensora-launch generate --resume {made.run}" in said
    assert not last.requeued.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("line", [STEP, SAVED], ids=["step", "video"])
def test_a_start_that_came_further_counts_anew(made: AttemptDir, line: str) -> None:
    for number in range(FRUITLESS + 1):
        last = start(made)
        last.events(1).write_text(LOADED + (line if number == 1 else ""))
        assert requeue_problem(last, "lost: n2", ENV) is None


def test_starts_of_others_and_those_that_slurm_ended_do_not_count(made: AttemptDir) -> None:
    for number in range(2 * FRUITLESS):
        other = attempt_like(made, read_plan(made.plan))
        record_launch(other, Launched("slurm", job="61" if number % 2 else "60"))
        if number % 2:
            other.requeued.touch()
    assert requeue_problem(start(made), "lost: n2", ENV) is None


def test_a_script_by_hand_refuses_more_ranks_than_cpus(empty_folder: Path) -> None:
    words = ["model=tiny", "--prompt", "x"]
    env = {"SLURM_JOB_ID": "60", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_CPUS_PER_NODE": "16,2"}
    with pytest.raises(UserError, match="8 ranks per node need a CPU each, but this job has 2 per node: ask for more"):
        attempt_by_hand(empty_folder / "slurm-60.run", 0.0, 8, words, env)
    assert list(empty_folder.iterdir()) == []
    attempt_by_hand(empty_folder / "slurm-60.run", 0.0, 2, words, env)
    assert len(list(empty_folder.glob("runs/*"))) == 1


def test_the_file_of_an_earlier_job_of_the_same_id_does_not_count(tmp_path: Path) -> None:
    """Slurm's numbers start again. All tasks of an array find one file, and a restart finds that of its first start."""
    first, second, now = tmp_path / "slurm-60.run", tmp_path / "slurm-60-2.run", 1_000_000_000.0
    again = {"SLURM_RESTART_COUNT": "1"}
    assert run_file_of(first, now, {}) == run_file_of(first, now, again) == first
    first.touch()
    os.utime(first, (now - 86_400, now - 86_400))
    assert run_file_of(first, now, {}) == second
    assert run_file_of(first, now, again) == run_file_of(first, 0, {}) == first
    second.touch()
    os.utime(second, (now - 5, now - 5))  # by a file server whose clock is late
    assert run_file_of(first, now, {}) == run_file_of(first, now + 86_400, again) == second
