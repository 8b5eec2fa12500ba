"""--output: the run's own folder, which holds nothing before."""

import json
import os
import threading
from pathlib import Path

import pytest

from opensora_launch.cli import generate, main
from opensora_launch.cli.submit import NotSubmitted
from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Machine
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.request.slurm_task import attempt_by_hand
from opensora_launch.rundir import create_once
from opensora_launch.runs.newest import named_report, named_run
from tests.samples import finish_video

ONE_RANK = Machine(device="cpu", nodes=1, gpus_per_node=1, cpus_per_node=1)
WORDS = ["--prompt", "a", "model=tiny"]


def lines_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["generate", *words]) == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("there", [False, True])
def test_a_new_or_empty_folder_is_the_runs_own(empty_folder: Path, there: bool) -> None:
    folder = empty_folder / "new/über den #1"
    if there:
        folder.mkdir(parents=True)
    run = prepare_attempt([*WORDS, "--output", "new/über den #1"], ONE_RANK).run
    assert run.path == folder
    assert {"samples", "config.yaml", "plan.json", "attempts"} <= {path.name for path in folder.iterdir()}
    assert not (empty_folder / "runs").exists()
    assert "--output" not in json.loads(run.overrides.read_text())


def test_a_folder_with_something_in_it_is_refused(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty_folder / "full").mkdir()
    (empty_folder / "full/.hidden").touch()
    for more in ([], ["dry_run=true"]):
        assert lines_of(capsys, *WORDS, "--output", "full", *more) == [
            "error: this run cannot start:",
            "  - --output full is not empty; give another folder (--resume full makes what is missing there)",
        ]
    assert lines_of(capsys, *WORDS, "--output", "full/.hidden")[1:] == [
        "  - --output full/.hidden cannot be used: Not a directory"
    ]
    assert [path.name for path in (empty_folder / "full").iterdir()] == [".hidden"]


def test_a_folder_that_cannot_be_made(empty_folder: Path) -> None:
    (empty_folder / "file").touch()
    with pytest.raises(UserError, match=r"--output .*/file/x cannot be used: Not a directory"):
        prepare_attempt([*WORDS, "--output", str(empty_folder / "file/x")], ONE_RANK)


def test_a_sweep_of_several_runs_has_no_one_folder(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--output", "out", "-m"]
    assert lines_of(capsys, *words, "video.num_frames=5,9")[1:] == [
        "  - --output is the folder of one run, and this sweep is 2 runs: use runs_dir=FOLDER"
    ]
    assert len(prepare_attempt([*words, "sampling.seed=1,2"], ONE_RANK).run.prompts.read_text().splitlines()) == 2


def test_resume_stays_in_the_folder(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = prepare_attempt([*WORDS, "--output", "out"], ONE_RANK).run
    finish_video(run.path, "0000_0")
    assert main(["generate", "--resume", "out", "--output", f"{empty_folder}/out/"]) == 0
    assert capsys.readouterr().out == f"nothing is missing in {run}\n"
    assert "--output other does not go with --resume" in lines_of(capsys, "--resume", "out", "--output", "other")[1]


def test_the_folder_is_found(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its path, from inside it, and as the newest of runs/ if it is there; its attempts are no runs."""
    run = prepare_attempt([*WORDS, "--output", "runs/mine"], ONE_RANK).run
    finish_video(run.path, "0000_0")
    for named in ("latest", "runs/latest", "runs/mine", "runs/mine/latest"):
        assert named_run(named).absolute() == run.path
        assert named_report(named).absolute() == run.path
    for folder in ("runs", "runs/mine"):
        assert main(["list", folder]) == 0
        _, *lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines] == [["mine", "done"]]
    os.chdir(run)
    assert main(["list", "."]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["mine", "done"]


def test_a_dry_run_shows_it_and_a_refused_job_leaves_nothing(
    empty_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS, "topology=cpu1", "--output", "out"]
    assert main(["generate", *words, "dry_run=true"]) == 0
    assert f"{empty_folder}/out/attempts/0" in capsys.readouterr().out.replace(" \\\n      ", "")
    assert list(empty_folder.iterdir()) == []

    def refuse(*_: object) -> int:
        assert (empty_folder / "out/plan.json").exists()
        raise NotSubmitted("sbatch refuses it")

    monkeypatch.setattr(generate, "start_run", refuse)
    assert main(["generate", *words]) == 2
    assert list(empty_folder.iterdir()) == []


def test_tasks_of_an_array_share_it(empty_folder: Path) -> None:
    """A script that was submitted by hand: the task that finds the folder taken waits for the run in it."""
    env = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_CPUS_ON_NODE": "8"}
    words, run_file = [*WORDS, "--output", "out", "topology=cpu1"], empty_folder / "7.run"
    other = prepare_attempt(words, ONE_RANK)  # by the other task, which has not written the file yet
    timer = threading.Timer(0.1, create_once, [run_file, f"{other.run}\n"])
    timer.start()
    attempt = attempt_by_hand(run_file, 0.0, 1, words, env)
    timer.join()
    assert attempt.run.path == other.run.path
    assert attempt.number == 1
    with pytest.raises(UserError, match="is not empty"):
        attempt_by_hand(empty_folder / "8.run", 0.0, 1, words, {"SLURM_CPUS_ON_NODE": "8"})


def test_two_runs_cannot_take_it_at_once(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find it empty; the one that comes second is refused, and leaves the other's files alone."""
    from opensora_launch.request import prepare

    first = prepare_attempt([*WORDS, "--output", "out"], ONE_RANK).run
    before = sorted(str(path) for path in first.path.rglob("*"))
    monkeypatch.setattr(prepare, "output_problems", lambda folder: [])
    with pytest.raises(UserError, match="another run has taken this folder meanwhile"):
        prepare_attempt([*WORDS, "--output", "out"], ONE_RANK)
    assert sorted(str(path) for path in first.path.rglob("*")) == before
