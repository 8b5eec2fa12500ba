"""doctor's short test on real ranks, and what is made of its answer."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest

from opensora_launch.doctor import probe
from opensora_launch.doctor.check_result import Level
from opensora_launch.doctor.probe import AxisSpeed, ProbeResult, ProbeSpec, RankSeen, check_probe, run_probe
from opensora_launch.machine.processes import descendants
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.plan import Machine


def spec(layout: Layout, timeout_s: float = 60.0, device: str = "cpu") -> ProbeSpec:
    return ProbeSpec(device, layout, 1, nbytes=1 << 20, repeats=3, timeout_s=timeout_s)


@pytest.mark.slow
def test_each_axis_on_real_ranks() -> None:
    result, why_not = run_probe(Machine("cpu", 1, 4, 2), spec(Layout(1, 1, 2, 2)), os.environ)
    assert result, why_not
    assert [rank.rank for rank in result.ranks] == [0, 1, 2, 3]
    assert len({rank.host for rank in result.ranks}) == 1
    sent = {(speed.axis, speed.op, speed.ranks): speed.sent_bytes for speed in result.speeds}
    assert sent == {("ulysses", "all_to_all", 2): 1 << 19, ("ring", "ring", 2): 1 << 20}
    assert all(speed.seconds > 0 for speed in result.speeds)
    assert msgspec.json.decode(json.dumps(asdict(result)), type=ProbeResult) == result
    assert [f.check for f in check_probe(result, "", {})] == ["ranks", "bandwidth", "bandwidth"]


def test_ranks_that_cannot_start_say_why() -> None:
    result, why_not = run_probe(Machine("cuda", 1, 1, 2), spec(Layout(), device="cuda"), os.environ)
    assert result is None
    assert "torch sees no GPU" in why_not
    (finding,) = check_probe(result, why_not, {})
    assert finding.level is Level.fail


def test_ranks_that_do_not_find_each_other_say_why(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(asdict(spec(Layout()))))
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "1"}
    there = {"MASTER_ADDR": "no-such-node.invalid", "MASTER_PORT": "1", "CONNECT_TIMEOUT_S": "0.1"}
    argv = [sys.executable, "-m", "opensora_launch.worker.probe_rank", str(tmp_path)]
    assert subprocess.run(argv, env={**os.environ, **step, **there}).returncode == 1
    (said,) = [line for line in (tmp_path / "rank1.log").read_text().splitlines() if line]
    assert said.startswith("error: rank 1 on ")
    assert "cannot reach rank 0 at no-such-node.invalid:1" in said


def test_ranks_that_hang_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "probe_command", lambda machine, folder: ["sh", "-c", "setsid sleep 9999 & sleep 9999"])
    before = descendants(os.getpid())
    result, why_not = run_probe(Machine("cpu", 1, 2, 2), spec(Layout(1, 1, 1, 2), timeout_s=0.5), os.environ)
    assert (result, why_not) == (None, "no answer after 0.5 s")
    assert descendants(os.getpid()) <= before


def seen(*gpus: str | None, hosts: str = "aa", ahead: tuple[float | None, ...] = (None, None)) -> ProbeResult:
    ranks = tuple(RankSeen(n, hosts[n], gpu, ahead[n]) for n, gpu in enumerate(gpus))
    return ProbeResult(ranks, (AxisSpeed("ulysses", "all_to_all", 2, 10**9, 0.01),))  # 100 GB/s


def test_two_ranks_on_one_gpu() -> None:
    first, _ = check_probe(seen("GPU-x", "GPU-x"), "", {})
    assert (first.level, "share a GPU: GPU-x on a" in first.what) == (Level.fail, True)
    first, _ = check_probe(seen("GPU-x", "GPU-x", hosts="ab"), "", {})
    assert (first.level, first.what) == (Level.ok, "2 started on 2 hosts, each on its own GPU")


@pytest.mark.parametrize(("expected", "level"), [(150.0, Level.ok), (450.0, Level.warn)])
def test_bandwidth_against_the_catalogue(expected: float, level: Level) -> None:
    last = check_probe(seen(None, None), "", {"ulysses": expected})[-1]
    assert last.level is level
    assert f"all-to-all 100.00 GB/s sent by each rank, {100 / expected:.0%} of the catalogue's" in last.what


@pytest.mark.parametrize(("ahead", "level"), [((0.0, 0.02), Level.ok), ((0.0, -3.0), Level.warn)])
def test_clocks(ahead: tuple[float, float], level: Level) -> None:
    clock = check_probe(seen("g", "h", hosts="ab", ahead=ahead), "", {})[1]
    assert (clock.check, clock.level) == ("clock", level)
    assert level is Level.ok or "b is off most" in clock.what


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(probe, "probe_command", lambda machine, folder: ["false"])
    assert run_probe(Machine("cpu", 1, 2, 2), spec(Layout(1, 1, 1, 2)), os.environ) == (
        None, "the ranks ended without an error message",
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
