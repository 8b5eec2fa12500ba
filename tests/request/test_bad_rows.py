"""In a list of several prompts, one whose references cannot be used does not stop the others."""

import json
import shutil
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.request.attempt import prepare_attempt
from tests.samples import finish_video

ONE_RANK = Machine(device="cpu", nodes=1, gpus_per_node=1, cpus_per_node=1)
CASES = Path(__file__).parents[1] / "cases"
REASON = "not a readable video: Invalid data found when processing input, after 18 frames"
FRAMES = ["model=tiny", "video.num_frames=33"]


@pytest.fixture(autouse=True)
def cases(empty_folder: Path) -> Path:
    """The current folder, with mixed.csv: its second prompt has a damaged video."""
    for path in CASES.iterdir():
        shutil.copy(path, empty_folder)
    return empty_folder


def names(folder: Path) -> list[str]:
    return [video.name for video in Plan.from_dict(json.loads((folder / "plan.json").read_text())).videos]


def failed(run: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (run / "failed").iterdir()}


def test_the_good_rows_are_planned_and_the_bad_one_is_recorded(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempt = prepare_attempt(["--prompts", "mixed.csv", *FRAMES, "sampling.num_samples=2"], ONE_RANK).path
    run = attempt.parents[1]
    assert names(attempt) == ["0000_0", "0000_1", "0002_0", "0002_1"]
    assert names(run) == ["0000_0", "0000_1", "0001_0", "0001_1", "0002_0", "0002_1"]
    assert len((run / "prompts.jsonl").read_text().splitlines()) == 3
    reason = f"ref {cases / 'damaged.mp4'}: {REASON}"
    assert failed(run) == {"0001_0.txt": f"{reason}\n", "0001_1.txt": f"{reason}\n"}
    said = f"these prompts cannot be made, and the others are:\n  - mixed.csv line 3: {reason}\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "words",
    [
        ["--prompts", "mixed.csv", "--strict"],
        ["--prompt", "a", "--ref", "damaged.mp4", "sampling.cond_type=v2v_head", "sampling.num_samples=3"],
        ["--prompt", "a", "--prompt", "b", "--ref", "damaged.mp4", "sampling.cond_type=v2v_head"],
        ["--prompts", "mixed.csv", "-m", "video.num_frames=33,6"],  # another problem
    ],
)
def test_the_whole_list_is_refused(words: list[str], cases: Path) -> None:
    with pytest.raises(UserError) as caught:
        prepare_attempt([*FRAMES, *words], ONE_RANK)
    assert REASON in str(caught.value)
    assert not (cases / "runs").exists()


def test_a_sweep_leaves_out_a_row_where_its_condition_needs_it(cases: Path) -> None:
    """The first frame of the damaged video can be read."""
    (cases / "list.csv").write_text("text,ref\nsea,damaged.mp4\nrain,mark.png\n")
    argv = ["--prompts", "list.csv", *FRAMES, "-m", "sampling.cond_type=i2v_head,i2v_tail"]
    attempt = prepare_attempt(argv, ONE_RANK).path
    assert names(attempt) == ["0000_0", "0001_0", "0003_0"]
    assert list(failed(attempt.parents[1])) == ["0002_0.txt"]


def test_resume_tries_what_failed_again(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = prepare_attempt(["--prompts", "mixed.csv", *FRAMES], ONE_RANK).path.parents[1]
    finish_video(run, "0000_0")
    attempt = prepare_attempt(["--resume", str(run)], ONE_RANK).path
    assert (names(attempt), list(failed(run))) == (["0002_0"], ["0001_0.txt"])  # it is still damaged
    with pytest.raises(UserError, match="damaged"):
        prepare_attempt(["--resume", str(run), "--strict"], ONE_RANK)
    finish_video(run, "0002_0")
    assert main(["generate", "--resume", str(run)]) == 2  # nothing else is left to make
    assert f"0001_0: ref {cases / 'damaged.mp4'}: {REASON}" in capsys.readouterr().err
    assert list(failed(run)) == ["0001_0.txt"]
    shutil.copy(cases / "latin.mp4", cases / "damaged.mp4")
    attempt = prepare_attempt(["--resume", str(run)], ONE_RANK).path
    assert (names(attempt), failed(run)) == (["0001_0"], {})
