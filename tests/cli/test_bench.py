"""bench's points, order and report; compare's verdicts; top's lines. No run is started here but in one test."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.cli import bench, main
from opensora_launch.cli.bench import Done, Spot, Sweep, order, read_sweep, spots_of
from opensora_launch.errors import UserError
from opensora_launch.report.build import build_report, build_sweep
from opensora_launch.report.sweep import Point, sweep
from opensora_launch.telemetry.stall import Beat
from tests.report.synthetic import a_plan, plain_simulation, write_run


def test_points_of_a_sweep() -> None:
    """Sizes and layouts are series; each has every count."""
    found, own = spots_of(["gpus=[1,2,2x4]", "video=256px,768px", "repeats=5", "topology=custom"], None)
    assert [(s.series, s.gpus, s.nodes) for s in found] == [
        ("video=256px", 1, 1), ("video=256px", 2, 1), ("video=256px", 8, 2),
        ("video=768px", 1, 1), ("video=768px", 2, 1), ("video=768px", 8, 2),
    ]  # fmt: skip
    assert own == {"gpus": "[1,2,2x4]", "repeats": "5", "warmup": "1", "scaling": "strong"}
    assert found[5].overrides[-2:] == ("topology.nodes=2", "topology.gpus_per_node=4")
    threads = {o for s in found for o in s.overrides if "threads" in o}
    assert len(threads) == 1  # one number for all counts, or they would do other work


def test_weak_scaling_makes_more_videos() -> None:
    found, _ = spots_of(["gpus=[1,4]", "scaling=weak", "launcher.threads_per_rank=1"], None)
    assert [s.overrides[-1] for s in found] == ["sampling.num_samples=1", "sampling.num_samples=4"]


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError) as refused:
        spots_of(["gpus=[1,two]", "repeats=0", "warmup=x", "scaling=some"], None)
    assert [p.split("=")[0] for p in refused.value.problems] == ["gpus", "repeats", "warmup", "scaling"]


def test_every_second_round_goes_backwards() -> None:
    assert [order(3, r) for r in range(3)] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]


def made_run(folder: Path, name: str, world: int, scale: float = 1.0) -> Path:
    run = write_run(folder / name, a_plan(world), [plain_simulation(world, scale=scale).events()], done=["0000_0"])
    build_report(run)
    return run


@pytest.fixture
def half_done(tmp_path: Path) -> Path:
    """Two counts, a warm-up and two repeats: one run is missing."""
    folder = tmp_path / "bench-1"
    spots = (Spot("tiny", 1, 1, ()), Spot("tiny", 1, 2, ()))
    scales = {"w1": (0, 0, 3.0), "w2": (1, 0, 3.0), "a2": (1, 1, 1.0), "a1": (0, 1, 1.0), "b1": (0, 2, 1.1)}
    for name, (spot, _, scale) in scales.items():
        made_run(folder, name, spots[spot].gpus, scale)
    done = tuple(Done(spot, round_, name) for name, (spot, round_, _) in scales.items())
    state = Sweep(("--prompt", "x"), spots, 2, 1, False, 0.0, done)
    (folder / "sweep.json").write_text(json.dumps(asdict(state)))
    return folder


def test_a_sweep_is_resumed_and_warm_up_is_left_out(
    half_done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the missing run is made; the third round goes forwards, so it is the last one."""
    asked: list[int] = []

    def generate(folder: Path, argv: Any, spot: Spot) -> str:
        asked.append(spot.gpus)
        return made_run(folder, "b2", spot.gpus).name

    monkeypatch.setattr(bench, "_run", generate)
    assert main(["bench", "--resume", str(half_done)]) == 0
    assert asked == [2]
    assert "run 6 of 6: tiny, 2 GPUs, repeat 2" in capsys.readouterr().out
    assert len(read_sweep(half_done).done) == 6
    report = json.loads((half_done / "report.json").read_text())
    one, two = report["table"]
    assert (one["gpus"], one["repeats"], one["seconds"]) == (1, 2, pytest.approx((43 + 46.6) / 2))
    assert two["efficiency"] == pytest.approx((43 + 46.6) / 2 / 24.75 / 2, abs=1e-5)
    assert (one["low"], one["high"]) == (pytest.approx(43), pytest.approx(46.6))
    assert [p["gpus"] for p in report["curve"][0]["points"]] == [1, 2]
    assert report["curve"][1]["kind"] == "published"
    assert report["unknown"] == []
    assert "| tiny |    2 |" in (half_done / "report.md").read_text()


def test_a_failed_point_does_not_keep_the_others_back(
    half_done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_run", lambda folder, argv, spot: None)
    assert main(["bench", "--resume", str(half_done)]) == 1
    assert f"failed: tiny on 2; go on with: opensora-launch bench --resume {half_done}" in capsys.readouterr().err
    assert (half_done / "report.html").exists()


def test_what_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no sweep: sweep\.json cannot be read"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(("scale", "threshold", "code"), [(1.0, "5", 0), (1.2, "5", 1), (1.2, "30", 0), (0.5, "5", 0)])
def test_compare_fails_for_a_slower_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float, threshold: str, code: int
) -> None:
    a, b = made_run(tmp_path, "a", 2), made_run(tmp_path, "b", 2, scale)
    assert main(["compare", str(a), str(b), "--threshold", threshold]) == code
    out = capsys.readouterr().out
    assert ("<- slower" in out) == (code == 1)
    assert "note: one run each: how much their times spread is not known" in out


def sweep_of(folder: Path, seconds: tuple[float, ...]) -> Path:
    folder.mkdir()
    build_sweep(folder, sweep("s", [Point("x", 2, seconds, None, "r")], version="0"))
    return folder


def test_compare_of_sweeps_minds_the_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = sweep_of(tmp_path / "a", (10.0, 10.2, 12.0))
    within = sweep_of(tmp_path / "b", (11.0, 11.5, 11.9))
    beyond = sweep_of(tmp_path / "c", (12.5, 12.6, 12.7))
    assert main(["compare", str(a), str(within)]) == 0
    assert main(["compare", str(a), str(beyond)]) == 1
    assert main(["compare", str(beyond), str(a)]) == 0
    assert "beyond the spread" in capsys.readouterr().out


def test_compare_refuses_what_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, s = made_run(tmp_path, "a", 2), sweep_of(tmp_path / "s", (1.0,))
    assert main(["compare", str(a), str(s)]) == 2
    assert main(["compare", str(a)]) == 2
    assert main(["compare", str(a), str(tmp_path / "none")]) == 2
    assert main(["compare", str(a), str(a), "--threshold", "x"]) == 2
    assert "compare two of a kind" in capsys.readouterr().err


def test_top_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path, "a", 2)
    beats = run / "attempts/0/heartbeat"
    beats.mkdir()
    now = time.time()
    first = Beat(0, "host-a", 1, now, "running", "denoise", "0000_0", 24, 50, 0, 1, "ulysses", (0, 1), 7, True, now - 9)
    second = replace(first, rank=1, inside=False, step=25)
    for beat in (first, second):
        (beats / f"rank{beat.rank}.json").write_text(json.dumps(asdict(beat)))
    assert main(["top", str(run), "--once"]) == 0
    head, _, one, two = capsys.readouterr().out.splitlines()
    assert head.startswith("2 of 2 ranks at work, 49% done after ")
    assert one.split() == ["0", "host-a", "denoise", "0000_0", "25/50", "9", "s", "in", "ulysses"]
    assert two.split() == ["1", "host-a", "denoise", "0000_0", "26/50"]
    for beat in (first, second):
        (beats / f"rank{beat.rank}.json").write_text(json.dumps(asdict(replace(beat, state="done"))))
    assert main(["top", str(run)]) == 0  # ends by itself
    assert capsys.readouterr().out.startswith("all 2 ranks have ended")
    assert main(["top", str(tmp_path)]) == 2
