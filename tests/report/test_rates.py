"""FLOP/s, links, energy, cost, serial shares, advice, and the forms for other programs."""

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from opensora_launch.plan.make_plan import make_plan
from opensora_launch.plan.plan import Machine
from opensora_launch.report.accounting import account
from opensora_launch.report.markdown import summary_lines
from opensora_launch.report.rates import (
    Prices,
    amdahl,
    compute_rates,
    cost,
    energy,
    karp_flatt,
    link_rates,
    row_flops,
    used_text,
)
from opensora_launch.report.wording import message
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import LayoutConfig, RunConfig
from opensora_launch.schema.plain import config_yaml
from opensora_launch.schema.prices import EstimateConfig
from opensora_launch.telemetry.events import Collective, RankEvents, WorkSpan
from tests.report.checked import build
from tests.report.synthetic import EPOCH_S, Simulation, a_plan, plain_simulation, write_run

CARD = Path(__file__).parents[2] / "configs" / "hardware" / "h100_sxm.yaml"


def config() -> RunConfig:
    return RunConfig(layout=LayoutConfig(ulysses=2), hardware=Card(**yaml.safe_load(CARD.read_text())))


def test_row_flops_are_the_published_models() -> None:
    """768px, 129 frames: 5.09e15 FLOP a row, as counted for Open-Sora 2.0."""
    assert row_flops(a_plan(1, video__resolution="768px", video__aspect_ratio="1:1")) == pytest.approx(
        5.09e15, rel=0.01
    )


def test_mfu_is_flops_over_peak() -> None:
    plan = replace(a_plan(2), precision="bf16")
    accounts = account(plain_simulation(2).events())
    found = compute_rates(plan, accounts, 9, config().hardware)
    denoise = 2 * (18 + 5 * 0.25) + 1  # rank 1 begins a second before rank 0, which encodes text
    assert found["flops"] == pytest.approx(9 * row_flops(plan))
    assert found["flops_per_s"] == pytest.approx(found["flops"] / denoise)
    assert found["flops_per_s_computing"] == pytest.approx(found["flops"] / 36)
    assert found["mfu"] == pytest.approx(found["flops_per_s"] / 989.4e12)
    unknown = compute_rates(a_plan(2), accounts, 9, None)
    assert (unknown["mfu"], unknown["mfu_reason"]) == (None, message("cpu_peak_unknown"))


def test_links_are_measured_against_nvlink() -> None:
    """5 collectives of 1000 bytes on each of two ranks, 0.25 s each."""
    (link,) = link_rates(a_plan(2), account(plain_simulation(2).events()), config().hardware)
    assert (link["axis"], link["bytes"], link["seconds"]) == ("ulysses", 10_000, pytest.approx(2.5))
    assert link["bytes_per_s"] == pytest.approx(4000)
    assert link["share"] == pytest.approx(4000 / 450e9)
    (unknown,) = link_rates(a_plan(2), account(plain_simulation(2).events()), None)
    assert (unknown["share"], unknown["reason"]) == (None, message("link_peak_unknown"))


def used(ranks: int, wall_s: float, gpus: list[dict[str, Any]]) -> dict[str, Any]:
    """An attempt of the report, as far as energy and cost read it."""
    return {"ranks": [{}] * ranks, "wall_s": wall_s, "gpus": gpus}


def test_energy_and_cost_of_a_video() -> None:
    gpus: list[dict[str, Any]] = [
        {"host": "h", "index": 0, "energy_j": 3000.0, "power_mean_w": None},
        {"host": "h", "index": 1, "energy_j": None, "power_mean_w": 60.0},
    ]
    found = energy([used(2, 10.0, gpus)], 2, 0.36)
    assert (found["joules"], found["joules_per_video"], found["reason"]) == (3600.0, 1800.0, None)
    assert found["usd_per_video"] == pytest.approx(1800 / 3.6e6 * 0.36)
    assert found["kwh"] == pytest.approx(0.001)
    for unread in ([used(2, 10.0, [])], [used(2, 10.0, gpus), used(2, 10.0, [])]):
        assert energy(unread, 2, None)["reason"] == message("no_power_readings")
    spent = cost([used(4, 600.0, []), used(4, 300.0, [])], 2, 3.0)
    assert (spent["gpu_hours"], spent["usd"], spent["usd_per_video"]) == (1.0, 3.0, 1.5)
    assert cost([used(4, 900.0, [])], 2, None)["reason"] == message("no_price")


def test_what_a_run_used_is_the_last_line(run: Path) -> None:
    """The price of the run's own config counts where the command gives none, and every attempt is paid for."""
    report = build(run)
    assert (report["cost"]["usd"], summary_lines(report)[-1]) == (None, "used: 0.0138 GPU-hours")
    (run / "config.yaml").write_text(config_yaml(replace(config(), estimate=EstimateConfig(usd_per_gpu_hour=300.0))))
    report = build(run)
    assert summary_lines(report)[-1] == "used: 0.0138 GPU-hours, $4.12"
    assert "Used: 0.0138 GPU-hours, $4.12." in (run / "report.md").read_text()
    assert build(run, prices=Prices(usd_per_gpu_hour=3.0))["cost"]["usd"] == pytest.approx(report["cost"]["usd"] / 100)
    report["energy"]["kwh"], report["videos"]["done"] = 0.25, 2
    assert used_text(report) == "used: 0.0138 GPU-hours, 0.2500 kWh, $4.12 ($4.12 per video)"


@pytest.mark.parametrize(("ranks", "serial"), [(2, 0.1), (4, 0.25), (8, 0.0), (8, 1.0)])
def test_karp_flatt_gives_amdahls_share_back(ranks: int, serial: float) -> None:
    speedup = 1 / (serial + (1 - serial) / ranks)
    assert karp_flatt(speedup, ranks) == pytest.approx(serial, abs=1e-12)
    assert karp_flatt(1.0, 1) is None


def test_amdahl_finds_both_parts() -> None:
    fit = amdahl([(n, 70 + 1586 / n) for n in (1, 2, 4, 8)])
    assert fit is not None
    assert [fit["serial_s"], fit["parallel_s"], fit["serial_share"]] == pytest.approx([70, 1586, 70 / 1656])
    assert amdahl([(2, 5.0), (2, 6.0)]) is None


def test_compute_by_kind_adds_up() -> None:
    """A step of 8 s: a block of 5 s in it, 2 s of attention in the block, half a second of that exchanging."""
    sim = Simulation(1)
    sim.spend(0, "compute", 8.0)
    sim.step("0000_0", 0, 1, [1], "x", [0.0])
    (events,) = sim.events()
    zero = events.meta.start_s
    events = replace(
        events,
        work=(WorkSpan("double", zero + 1, zero + 6), WorkSpan("attention", zero + 2, zero + 4)),
        collectives=(Collective("ring", (0,), 1, 8, zero + 3, zero + 3.5),),
    )
    (found,) = account([events]).ranks
    kinds = {"attention": 1.5, "double": 3.0, "single": 0.0, "other": 3.0}
    assert dict(found.compute_by_kind) == pytest.approx(kinds, abs=1e-6)
    assert found.parts["compute"] == pytest.approx(7.5)
    assert found.parts["communication"] == pytest.approx(0.5)


def on_hosts(offset_s: float | None, later_s: float | None) -> list[RankEvents]:
    """Two hosts, the second's wall clock 3 s wrong; its clock is 977 s ahead of the first's."""
    sim = plain_simulation(2)
    hosts = Simulation(2, ["host-a", "host-b"])
    made = []
    for r, e in enumerate(sim.events()):
        move = hosts.zero[hosts.hosts[r]] - sim.zero["host-a"]
        meta = replace(
            e.meta, host=hosts.hosts[r], start_s=e.meta.start_s + move, start_epoch_s=EPOCH_S + 3.0 * r,
            clock_offset_s=offset_s if r else (None if offset_s is None else 0.0),
            clock_offset_error_s=0.002 if r else 0.0,
        )  # fmt: skip
        assert e.end is not None
        made.append(
            replace(
                e, meta=meta, end=replace(e.end, end_s=e.end.end_s + move, clock_offset_s=later_s if r else 0.0),
                spans=tuple(replace(s, start_s=s.start_s + move, end_s=s.end_s + move) for s in e.spans),
                steps=tuple(replace(s, start_s=s.start_s + move, end_s=s.end_s + move) for s in e.steps),
                collectives=tuple(replace(c, start_s=c.start_s + move, end_s=c.end_s + move) for c in e.collectives),
            )
        )  # fmt: skip
    return made


def test_hosts_are_joined_by_measured_offsets() -> None:
    """With them waiting across hosts is right though the wall clocks are not; the error is stated."""
    truth = account(plain_simulation(2).events())
    found = account(on_hosts(-977.0, -976.999))
    assert found.clock_error_s == pytest.approx(0.003)
    assert found.unknown == ()
    for mine, theirs in zip(found.ranks, truth.ranks, strict=True):
        assert dict(mine.parts) == pytest.approx(dict(theirs.parts), abs=1e-6)
    rough = account(on_hosts(None, None))
    assert rough.clock_error_s is None
    assert rough.unknown == (message("wall_clocks"),)
    assert rough.ranks[0].parts["waiting"] != pytest.approx(truth.ranks[0].parts["waiting"], abs=0.5)


def test_how_far_clocks_may_be_apart_is_written(tmp_path: Path) -> None:
    """Of several hosts; one has nothing to agree with."""
    line = "The hosts' clocks agree to 3.000 ms."
    plan = a_plan(2)
    build(write_run(tmp_path / "two", plan, [on_hosts(-977.0, -976.999)], done=["0000_0"]))
    assert line in (tmp_path / "two/report.md").read_text().splitlines()
    build(write_run(tmp_path / "rough", plan, [on_hosts(None, None)], done=["0000_0"]))
    build(write_run(tmp_path / "one", plan, [plain_simulation(2).events()], done=["0000_0"]))
    for name in ("rough", "one"):
        assert "clocks agree" not in (tmp_path / name / "report.md").read_text()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    plan = make_plan(config(), Machine("cuda", 1, 2, 4), a_plan(2).videos, "0.1.0")
    events = plain_simulation(2).events()
    folder = write_run(tmp_path / "run", replace(plan, precision="bf16"), [events], done=["0000_0"])
    (folder / "config.yaml").write_text(config_yaml(config()))
    return folder


def test_prediction_and_peak_come_from_the_runs_own_config(run: Path) -> None:
    report = build(run, prices=Prices(usd_per_gpu_hour=2.0))
    assert report["rates"]["peak_flops_per_s"] == 989.4e12
    assert report["cost"]["usd_per_video"] == pytest.approx(2 * 24.75 / 3600 * 2.0, rel=1e-3)
    assert report["prediction_reason"] is None
    assert [p["what"] for p in report["prediction"]] == ["load", "text", "denoise", "vae", "save", "total"]
    assert report["prediction"][-1]["measured_s"] == pytest.approx(24.75)
    assert all(p["predicted_s"] > 0 for p in report["prediction"])
    total, said = report["prediction"][-1], (run / "report.md").read_text()
    off = f"{total['measured_s'] / total['predicted_s'] - 1:+.1%}"
    assert re.search(rf"\| whole job +\| +{total['predicted_s']:.1f} \| +24\.8 \| +{re.escape(off)} \|\n", said)
    (run / "config.yaml").write_text("model: [1")
    unreadable = build(run)
    assert (unreadable["rates"]["mfu"], unreadable["prediction"]) == (None, None)
    assert unreadable["prediction_reason"] == message("no_planner_rates")


def test_tables_of_the_ranks(run: Path) -> None:
    build(run)
    rows = list(csv.DictReader((run / "ranks.csv").read_text().splitlines()))
    assert [(r["rank"], r["compute_s"], r["communication_ulysses_s"]) for r in rows] == [
        ("0", "18.0", "1.25"), ("1", "18.0", "1.25"),
    ]  # fmt: skip
