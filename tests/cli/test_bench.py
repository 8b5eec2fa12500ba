"""bench's points, order and report."""

import csv
import fcntl
import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from opensora_launch.cli import bench, main
from opensora_launch.errors import UserError
from opensora_launch.report.wording import message, say
from opensora_launch.request.bench_points import read_words
from opensora_launch.rundir import SweepDir
from opensora_launch.runs.sweep_state import BenchPoint, FinishedRun, Sweep, read_sweep
from tests.cli.runs import made_run
from tests.report.sweeps import read_sweep_report

TINY = (
    "model=tiny", "video.num_frames=1", "sampling.num_steps=2", "topology=custom", "topology.device=cpu",
    "launcher.threads_per_rank=1",
)  # fmt: skip


def test_points_of_a_sweep() -> None:
    """Sizes and layouts are series; each has every count."""
    asked = read_words(["gpus=[1,2,2x4]", "video=256px,768px", "repeats=5", "topology=custom"], None)
    found = asked.sweep.points
    assert [(s.series, s.gpus, s.nodes) for s in found] == [
        ("video=256px", 1, 1), ("video=256px", 2, 1), ("video=256px", 8, 2),
        ("video=768px", 1, 1), ("video=768px", 2, 1), ("video=768px", 8, 2),
    ]  # fmt: skip
    sweep = asked.sweep
    assert (sweep.repeats, sweep.warmup, sweep.weak, sweep.elsewhere) == (5, 1, False, False)
    assert asked.runs_dir == Path("runs").absolute()
    assert found[5].overrides[-2:] == ("topology.nodes=2", "topology.gpus_per_node=4")
    threads = {o for s in found for o in s.overrides if "threads" in o}
    assert len(threads) == 1  # one number for all counts, or they would do other work


def test_weak_scaling_makes_more_videos() -> None:
    asked = read_words(["gpus=[1,4]", "scaling=weak", "launcher.threads_per_rank=1"], None)
    assert [s.overrides[-1] for s in asked.sweep.points] == ["sampling.num_samples=1", "sampling.num_samples=4"]


@pytest.mark.parametrize("word", ["launcher=slurm", "launcher.kind=slurm"])
def test_jobs_are_waited_for(word: str) -> None:
    """However Slurm was asked for: a job that is only submitted has left no report."""
    asked = read_words([word, "gpus=[2]"], None)
    assert asked.sweep.points[0].overrides[-1] == "follow=true"
    assert asked.sweep.elsewhere


def test_inside_an_allocation_runs_are_steps_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ID", "7"), ("NUM_NODES", "2"), ("CPUS_PER_NODE", "12(x2)")):
        monkeypatch.setenv(f"SLURM_JOB_{name}", value)
    asked = read_words(["gpus=[1,2x3]"], None)
    assert {"launcher=srun", "launcher.threads_per_rank=4"} <= set(asked.sweep.points[1].overrides)
    assert "launcher=srun" not in read_words(["gpus=[1]", "launcher=torchrun"], None).sweep.points[0].overrides


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError) as refused:
        read_words(["gpus=[1,two]", "repeats=0", "warmup=x", "scaling=some"], None)
    assert [p.split("=")[0] for p in refused.value.problems] == ["gpus", "repeats", "warmup", "scaling"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpus=[2x0]"], "gpus=[2x0] must be counts of GPUs"),
        (["gpus=[0x2]"], "gpus=[0x2] must be counts of GPUs"),
        (["gpus=[]"], "gpus=[] must be counts of GPUs"),
        (["repeats=²"], "repeats=² must be a whole number"),
        (["sampling.num_steps=0"], "sampling.num_steps=0 must be at least 1"),
        (["gpus=[2x2]"], "topology.nodes=2: launcher=torchrun starts ranks on one machine"),
        (["layout.ring=3"], "ring"),
        (["--prompts", "none.txt"], "none.txt: no such file"),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_run(
    empty_folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["bench", *TINY, *words]) == 2
    assert said in capsys.readouterr().err
    assert list(empty_folder.iterdir()) == []


def test_every_second_round_goes_backwards() -> None:
    sweep = Sweep((), (BenchPoint("x", 1, 1, ()),) * 3, repeats=2, warmup=1, weak=False, elsewhere=False)
    assert list(sweep.runs()) == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0), (2, 0), (2, 1), (2, 2)]


def test_a_sweep_of_the_version_before_is_read(tmp_path: Path) -> None:
    """Its file names points "spots"; so do new files."""
    point = {"series": "x", "nodes": 1, "gpus_per_node": 2, "overrides": ["a=1"], "device": "cpu"}
    done = [{"spot": 0, "round": 1, "run": "a2", "busy": None}]
    settings = {"repeats": 2, "warmup": 1, "weak": False, "elsewhere": False}
    data = {"argv": ["--prompt", "é"], "spots": [point], **settings, "done": done}
    folder = SweepDir(tmp_path)
    folder.state.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    before = folder.state.read_text()
    sweep = read_sweep(folder)
    assert (sweep.points[0].size, sweep.done) == ("2 CPU ranks", (FinishedRun(0, 1, "a2", None),))
    sweep.write(folder)
    assert json.loads(folder.state.read_text()) == data
    assert folder.state.read_text().splitlines()[:3] == before.splitlines()[:3]


def test_counts_in_words() -> None:
    spots = [
        BenchPoint("x", 1, 1, ()),
        BenchPoint("x", 2, 4, ()),
        BenchPoint("x", 1, 1, (), "cpu"),
        BenchPoint("x", 1, 3, (), "cpu"),
    ]
    assert [s.size for s in spots] == ["1 GPU", "8 GPUs", "1 CPU rank", "3 CPU ranks"]


@pytest.fixture
def half_done(tmp_path: Path) -> Path:
    """Two counts, a warm-up and two repeats: one run is missing."""
    folder = tmp_path / "bench-1"
    spots = (BenchPoint("tiny", 1, 1, (), "cpu"), BenchPoint("tiny", 1, 2, (), "cpu"))
    scales = {"w1": (0, 0, 3.0), "w2": (1, 0, 3.0), "a2": (1, 1, 1.0), "a1": (0, 1, 1.0), "b1": (0, 2, 1.1)}
    for name, (spot, _, scale) in scales.items():
        made_run(folder, name, spots[spot].gpus, scale)
    done = tuple(FinishedRun(spot, round_, name, 0.0) for name, (spot, round_, _) in scales.items())
    state = Sweep(("--prompt", "x"), spots, 2, 1, False, False, done)
    state.write(SweepDir(folder))
    return folder


def with_runs(folder: Path, **runs: tuple[int, int, float | None]) -> dict[str, Any]:
    """The sweep's report, made anew, with these runs (point, round, busy) in the place of what was done."""
    done = tuple(FinishedRun(spot, round_, name, busy) for name, (spot, round_, busy) in runs.items())
    replace(read_sweep(SweepDir(folder)), done=done).write(SweepDir(folder))
    assert main(["report", str(folder)]) == 0
    return read_sweep_report(folder)


def test_a_sweep_is_resumed_and_warm_up_is_left_out(
    half_done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the missing run is made; the third round goes forwards, so it is the last one."""
    asked: list[int] = []

    def generate(folder: SweepDir, sweep: Sweep, point: BenchPoint) -> str:
        asked.append(point.gpus)
        return made_run(folder.path, "b2", point.gpus).name

    monkeypatch.setattr(bench, "_run", generate)
    monkeypatch.setattr(bench, "busy_share", lambda: 0.125)
    assert main(["bench", "--resume", str(half_done)]) == 0
    assert asked == [2]
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "run 6 of 6: tiny, 2 CPU ranks, repeat 2"
    assert re.findall(r"tiny +\d CPU ranks? +([\d.]+) s  efficiency", out) == ["44.80", "24.75"]
    assert out.splitlines()[-1] == f"report: {half_done / 'report.html'}"
    assert [d.busy for d in read_sweep(SweepDir(half_done)).done] == [0.0] * 5 + [0.125]
    report = read_sweep_report(half_done)
    one, two = report["table"]
    assert (one["gpus"], one["repeats"], one["seconds"]) == (1, 2, pytest.approx((43 + 46.6) / 2))
    assert two["efficiency"] == pytest.approx((43 + 46.6) / 2 / 24.75 / 2, abs=1e-5)
    assert (one["low"], one["high"]) == (pytest.approx(43), pytest.approx(46.6))
    assert [p["gpus"] for p in report["curve"][0]["points"]] == [1, 2]
    assert report["curve"][0]["points"][0]["high"]["speedup"] == pytest.approx((43 + 46.6) / 2 / 43, abs=1e-5)
    assert report["unknown"] == []
    assert (report["schema"], report["unit"], one["work"]["num_steps"]) == (4, "CPU rank", 50)
    base = {"name": "tiny", "kind": "measured", "gpus": 1, "seconds": pytest.approx(44.8), "source": "a1"}
    assert report["baselines"] == [base]
    text = (half_done / "report.md").read_text()
    assert "| tiny |         2 |" in text
    assert "- tiny: the baseline is 1 CPU rank, 44.80 s, measured here, run a1" in text
    rows = list(csv.DictReader((half_done / "report.csv").read_text().splitlines()))
    assert [(r["gpus"], float(r["seconds"]), r["source"]) for r in rows] == [("1", 44.8, "a1"), ("2", 24.75, "a2")]


def test_a_failed_point_does_not_keep_the_others_back(
    half_done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_run", lambda folder, sweep, point: None)
    assert main(["bench", "--resume", str(half_done)]) == 1
    said = f"failed: tiny on 2 CPU ranks; continue with: opensora-launch bench --resume {half_done}"
    assert said in capsys.readouterr().err
    assert (half_done / "report.html").exists()


def test_the_report_of_a_sweep_is_made_again(half_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(half_done)]) == 0
    out = capsys.readouterr().out
    assert f"report: {half_done / 'report.html'}" in out
    assert "2 CPU ranks" in out
    assert main(["report", str(half_done), "--baseline", str(half_done)]) == 2
    assert "--baseline goes with one run" in capsys.readouterr().err


def test_a_sweep_of_which_every_point_fails(
    half_done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs that failed are exit code 1, and what to do next is said; there is nothing to report."""
    replace(read_sweep(SweepDir(half_done)), done=()).write(SweepDir(half_done))
    monkeypatch.setattr(bench, "_run", lambda folder, sweep, point: None)
    assert main(["bench", "--resume", str(half_done)]) == 1
    again = f"opensora-launch bench --resume {half_done}"
    assert capsys.readouterr().err.splitlines() == [
        f"no report: no run that counts was successful; see {half_done / 'bench.log'}",
        f"failed: tiny on 1 CPU rank, tiny on 2 CPU ranks; continue with: {again}",
    ]
    assert not (half_done / "report.json").exists()
    assert main(["report", str(half_done)]) == 2
    assert f"and continue with: {again}" in capsys.readouterr().err


@pytest.mark.parametrize("first", [True, False])
def test_a_point_that_did_other_work_has_no_efficiency(half_done: Path, first: bool) -> None:
    """Whichever of its repeats it was."""
    made_run(half_done, "other", 2, sampling__num_steps=12)
    runs = {"other": (1, 1, 0.0), "a2": (1, 2, 0.0)} if first else {"a2": (1, 1, 0.0), "other": (1, 2, 0.0)}
    report = with_runs(half_done, a1=(0, 1, 0.0), b1=(0, 2, 0.0), **runs)
    one, two = report["table"]
    assert (one["efficiency"], one["other_work"]) == (1.0, [])
    assert (two["speedup"], two["efficiency"], two["karp_flatt"], two["repeats"]) == (None, None, None, 2)
    assert two["other_work"] == [message("difference", key="num_steps", here="12", baseline="50")]
    assert two["work"]["num_steps"] == ("12 or 50" if first else "50 or 12")
    assert report["amdahl"] == []
    assert report["curve"] == []
    assert [say(line) for line in report["unknown"]] == [
        "tiny on 2 CPU ranks did other work: num_steps: 12 here, 50 in the baseline."
    ]
    assert "none: other work" in (half_done / "report.md").read_text()


def test_a_baseline_whose_repeats_did_different_work_is_none(half_done: Path) -> None:
    made_run(half_done, "other", 1, sampling__num_steps=12)
    report = with_runs(half_done, a1=(0, 1, 0.0), other=(0, 2, 0.0), a2=(1, 1, 0.0))
    assert [r["efficiency"] for r in report["table"]] == [None, None]
    assert message("mixed_baseline", name="tiny") in report["unknown"]


def test_the_smallest_count_that_ran_is_the_baseline_and_named(half_done: Path) -> None:
    report = with_runs(half_done, a2=(1, 1, 0.0))
    assert [(b["gpus"], b["source"]) for b in report["baselines"]] == [(2, "a2")]
    assert "tiny on 1 CPU rank has no successful run." in map(say, report["unknown"])
    assert "tiny: the baseline is 2 CPU ranks, 24.75 s, measured here, run a2" in (half_done / "report.md").read_text()


def test_what_weakens_a_sweep_is_said(half_done: Path) -> None:
    """Others were busy before some runs; a run was resumed on another host and by another version."""
    path = half_done / "a2" / "report.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps(made | {"version": "9", "machine": made["machine"] | {"hosts": ["host-b"]}}))
    report = with_runs(half_done, w1=(0, 0, 0.9), a1=(0, 1, 0.3), b1=(0, 2, 0.1), a2=(1, 1, 0.25))
    assert report["unknown"] == [
        message("machine_busy", busy=2, runs=3, share=0.3),
        message("other_hosts", hosts=["host-a", "host-b"]),
        message("other_versions", versions=["0.1.0", "9"]),
    ]
    unwatched = with_runs(half_done, a1=(0, 1, None), a2=(1, 1, 0.0))
    assert unwatched["unknown"][0] == message("idleness_unknown")
    replace(read_sweep(SweepDir(half_done)), elsewhere=True).write(SweepDir(half_done))
    assert main(["report", str(half_done)]) == 0
    assert "The ranks were on other machines" in (half_done / "report.md").read_text()


def test_a_machine_tells_how_busy_it_is() -> None:
    share = bench.busy_share()
    assert share is not None
    assert 0 <= share <= 1


def test_two_benches_do_not_share_a_folder(half_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (half_done / "bench.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["bench", "--resume", str(half_done)]) == 2
    assert capsys.readouterr().err == f"error: another bench works on {half_done}\n"


def test_what_is_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"is not a sweep: sweep\.json cannot be read"):
        read_sweep(SweepDir(tmp_path))


def test_a_resumed_sweep_takes_no_more_words(half_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--resume", str(half_done), "gpus=[1,4]"]) == 2
    assert "gpus=[1,4] does not go with --resume" in capsys.readouterr().err
