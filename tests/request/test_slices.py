"""--start and --end: slices of a list make together exactly what the whole list makes."""

from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.plan.plan import VideoRequest
from tests.ranks import run_command
from tests.request.test_prompts import written

ROWS = 'text,name,num_samples,seed\nrain,wet,2,\nsea,Wet,,7\nsun,,,\nrain,wet,,\n"fog, sea",dim,3,\n'


@pytest.fixture
def listed(empty_folder: Path) -> list[str]:
    """A list of six prompts, of which the command line names one, at two points of a sweep; names repeat."""
    (empty_folder / "list.csv").write_text(ROWS)
    words = ["--prompt", "storm", "--prompts", "list.csv", "-m", "sampling.num_steps=2,3"]
    return [*words, "model=tiny", "--name", "{name}"]


def videos_of(words: list[str]) -> tuple[VideoRequest, ...]:
    return written(words)[1].videos


@pytest.mark.parametrize("cuts", [[3], [1, 2, 5], [1, 2, 3, 4, 5]])
def test_slices_are_the_whole(listed: list[str], cuts: list[int]) -> None:
    """The same names, seeds and settings, each video once, whatever the cuts."""
    whole = videos_of(listed)
    parts = [
        videos_of([*listed, "--start", str(start), "--end", str(end)])
        for start, end in zip([0, *cuts], [*cuts, 6], strict=True)
    ]
    assert len({video.name.casefold() for video in whole}) == len(whole) == 18
    assert sorted((v for part in parts for v in part), key=lambda v: v.name) == sorted(whole, key=lambda v: v.name)
    assert [len(part) for part in parts] != [len(whole)]


def test_either_end_may_be_left_out(listed: list[str]) -> None:
    whole = videos_of(listed[:-2])
    assert [v.name for v in videos_of([*listed[:-2], "--end", "1"])] == ["0000_0", "0006_0"]
    assert [v.name for v in videos_of([*listed[:-2], "--start=5"])] == [
        "0005_0", "0005_1", "0005_2", "0011_0", "0011_1", "0011_2",
    ]  # fmt: skip
    assert videos_of([*listed[:-2], "--start", "0", "--end", "6"]) == whole


def test_the_run_holds_what_it_makes(listed: list[str]) -> None:
    """The lines of the others are not in prompts.jsonl; those that are say which row they were."""
    _, plan, lines = written([*listed, "--start", "1", "--end", "2"])
    assert [(line["index"], line["text"], line["source"]) for line in lines] == [
        (1, "rain", "list.csv line 2"),
        (7, "rain", "list.csv line 2"),
    ]
    assert [name for line in lines for name in line["videos"]] == [video.name for video in plan.videos]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "ends",
    [
        ["--start", "6"],
        ["--end", "7"],
        ["--end", "0"],
        ["--start", "3", "--end", "3"],
        ["--start", "4", "--end", "3"],
        ["--start", "-1"],
        ["--start", "1.5"],
        ["--start", "", "--end", "2"],
        ["--end", "9" * 30],
    ],
)
def test_a_slice_outside_of_the_list_is_one_line(
    ends: list[str], listed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *listed, *ends]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: this run cannot start:",
        f"  - {' '.join(ends)}: the list has 6 prompts, numbered from 0 to 5; --start must be the number of a prompt, "
        "and --end a larger one, at most 6",
    ]


def test_references_of_other_rows_are_not_looked_for(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They may be on another machine. The row's own are."""
    (empty_folder / "list.csv").write_text("text,ref\nrain,gone.png\nsun,\nsea,lost.png\n")
    words = ["--prompts", "list.csv", "--strict", "model=tiny"]
    assert [v.name for v in videos_of([*words, "--start", "1", "--end", "2"])] == ["0001_0"]
    assert main(["generate", *words, "--start", "1"]) == 2
    said = capsys.readouterr().err
    assert "list.csv line 4: " in said
    assert "gone.png" not in said
    assert main(["generate", *words, "--end", "2", "sampling.num_steps=0"]) == 2
    said = capsys.readouterr().err
    assert "gone.png" in said
    assert "lost.png" not in said


def test_a_run_is_not_sliced_again(listed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    attempt, _, _ = written(listed)
    assert main(["generate", "--resume", str(attempt.parents[1]), "--start", "1", "--name", "x"]) == 2
    said = capsys.readouterr().err
    assert "--start does not go with --resume" in said
    assert "--name does not go with --resume" in said


@pytest.mark.slow
def test_slices_make_the_same_files(empty_folder: Path) -> None:
    """Whole runs, one of them of each slice, as on several machines: every file is the same to the bit."""
    (empty_folder / "list.csv").write_text("text,name,num_samples\nrain,wet,2\nsea,Wet,\nsun,,\n")
    words = ["--prompts", "list.csv", "--name", "{name} {prompt}", "model=tiny", "topology=cpu1", "launcher=inline"]
    words += ["sampling.num_steps=1", "video.num_frames=5"]
    slices: dict[str, list[str]] = {"whole": [], "first": ["--end", "1"], "rest": ["--start", "1"]}
    for folder, ends in slices.items():
        code, _, said = run_command(empty_folder, "generate", *words, *ends, "--output", folder)
        assert code == 0, said
    whole, *parts = ({p.name: p.read_bytes() for p in (empty_folder / n / "samples").glob("*.mp4")} for n in slices)
    assert len(whole) == 4
    assert [len(part) for part in parts] == [2, 2]
    assert parts[0] | parts[1] == whole
