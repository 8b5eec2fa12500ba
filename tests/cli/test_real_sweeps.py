"""Sweeps of real runs on CPU ranks."""

import os
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from opensora_launch.cli import bench, main
from opensora_launch.report.compare import read_either
from opensora_launch.report.wording import message
from opensora_launch.rundir import SweepDir
from opensora_launch.runs.sweep_state import read_sweep
from tests.cli.test_bench import TINY
from tests.ranks import run_command
from tests.report.sweeps import read_sweep_report


@pytest.mark.slow
def test_a_sweep_in_this_launchers_own_process(empty_folder: Path) -> None:
    """Two runs after one another in one process, since they differ in more than what each video has for itself."""
    words = ["model=tiny", "launcher=inline", "topology=cpu1", "sampling.num_steps=1", "--prompt", "x"]
    code, out, err = run_command(empty_folder, "generate", *words, "-m", "video.num_frames=1,5")
    assert (code, out.splitlines()[-1]) == (0, "2 runs: 2 done"), err
    made = [p.suffix for p in empty_folder.glob("runs/*/samples/0000_0.*") if not p.name.endswith(".sheet.png")]
    assert sorted(made) == [".json", ".json", ".mp4", ".png"]


@pytest.mark.slow
def test_a_sweep_of_one_real_rank(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["gpus=[1]", "repeats=1", "warmup=0", "launcher=inline", "--prompt", "sea"]
    assert main(["bench", *TINY, *words]) == 0
    assert "run 1 of 1: tiny, 1 CPU rank, repeat 1" in capsys.readouterr().out
    (sweep,) = (empty_folder / "runs").iterdir()
    report = read_either(sweep)
    assert [(r["gpus"], r["seconds"] > 0, r["efficiency"], r["work"]["num_steps"]) for r in report["table"]] == [
        (1, True, 1.0, 2),
    ]  # fmt: skip
    read_sweep_report(sweep)


@pytest.mark.slow
def test_a_real_sweep(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two counts of CPU ranks, each a `generate` with real ranks, in a folder whose name is hostile; then one of the
    runs is forgotten and made again.
    """
    folder = empty_folder / 'it\'s my "runs" ${x}, #1'
    runs_dir = 'runs_dir="it\'s my \\"runs\\" \\${x}, #1"'
    assert main(["bench", *TINY, "gpus=[1,2]", "repeats=1", "warmup=0", runs_dir, "--prompt", "a, b"]) == 0
    out = capsys.readouterr().out
    assert "run 1 of 2: tiny, 1 CPU rank, repeat 1" in out
    (sweep,) = folder.iterdir()
    assert os.listdir(empty_folder) == [folder.name]
    first = read_either(sweep)
    read_sweep_report(sweep)
    assert all(d.busy is not None for d in read_sweep(SweepDir(sweep)).done)
    assert [(r["gpus"], r["seconds"] > 0, r["efficiency"] > 0) for r in first["table"]] == [
        (1, True, True), (2, True, True),
    ]  # fmt: skip
    assert [r["work"]["num_steps"] for r in first["table"]] == [2, 2]
    assert message("no_warmup") in first["unknown"]
    assert not [line for line in first["unknown"] if line["code"] == "other_work"]
    plan = read_sweep(SweepDir(sweep))
    replace(plan, done=plan.done[:1]).write(SweepDir(sweep))
    assert main(["bench", "--resume", str(sweep)]) == 0
    assert "run 2 of 2: tiny, 2 CPU ranks, cfg2, then ulysses2, repeat 1" in capsys.readouterr().out
    again = read_sweep(SweepDir(sweep))
    assert again.done[0] == plan.done[0]
    assert again.done[1].run != plan.done[1].run
    assert [r["source"] for r in read_either(sweep)["table"]] == [d.run for d in again.done]


def test_a_run_is_shown_with_its_layout_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_run", lambda folder, sweep, point: None)
    assert main(["bench", *TINY, "gpus=[1,2]", "repeats=1", "warmup=0"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == "run 1 of 2: tiny, 1 CPU rank, repeat 1"
    assert re.fullmatch(r"run 2 of 2: tiny, 2 CPU ranks, cfg2, then ulysses2, repeat 1; about 0:00:\d\d left", second)
    (sweep,) = (tmp_path / "runs").iterdir()
    assert read_sweep(SweepDir(sweep)).points[1].layout == "cfg2, then ulysses2"


def test_the_time_left_of_a_sweep() -> None:
    assert bench._seconds_of([0, 1, 1, 2], {0: 10.0, 1: 4.0}) == 10 + 4 + 4 + 7


def test_a_sweep_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--output is the sweep's folder, which holds nothing before; its runs are in it."""
    folders = list[SweepDir]()
    monkeypatch.setattr(bench, "_run", lambda folder, sweep, point: folders.append(folder))
    words = ["bench", *TINY, "gpus=[1]", "repeats=1", "warmup=0", "--output", "mine"]
    assert main(words) == 1
    assert [folder.path for folder in folders] == [tmp_path / "mine"]
    assert len(read_sweep(SweepDir(tmp_path / "mine")).points) == 1
    capsys.readouterr()
    assert main(words) == 2
    assert "--output mine is not empty; give another folder (--resume mine makes" in capsys.readouterr().err
    assert main(["bench", "--resume", "mine", "--output", "other"]) == 2
    assert not (tmp_path / "runs").exists()
