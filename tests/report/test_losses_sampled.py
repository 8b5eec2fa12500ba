"""Losses that readings explain: missing cores, a sleeping process, clocks that are held down."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from opensora_launch.telemetry.samples import NodeSamples
from tests.report.synthetic import Simulation
from tests.report.test_losses import LAYOUT, lost_by, simulated


def node(samples: Sequence[dict[str, Any]], gpus: Sequence[dict[str, Any]] = ()) -> NodeSamples:
    return NodeSamples("host-a", "570", None, tuple(gpus), tuple(samples), (), {}, 0)


def test_ranks_without_cores_keep_the_others_waiting() -> None:
    """Their exchanges take longer than the fastest, and they are late in turn: all of it comes from missing cores."""
    sim, everyone = Simulation(4), (0, 1, 2, 3)
    for step in range(12):
        begun = list(sim.now)
        for r in everyone:
            sim.spend(r, "compute", 1.0 + 1.5 * (step % 4 == r))
        sim.meet("ulysses", everyone, 0.01 if step == 0 else 0.8)
        sim.step("0000_0", step, 1, [1] * 4, LAYOUT, begun)
    for r in everyone:
        sim.phase(r, "denoise", 0.0, "0000_0")
    whole_s = sim.now[0]
    samples = [
        {"time_s": sim.clock(0, now), "host": {"cpu_all_s": 2 * now}, "gpus": [],
         "ranks": [{"rank": r, "ran_s": now / 2, "starved_s": 0.15 * now, "major_faults": 0} for r in everyone]}
        for now in (0.0, whole_s)
    ]  # fmt: skip
    (largest, *others) = lost_by(sim.events(), [node(samples)])
    assert (largest["code"], largest["cause"]["code"]) == ("loss_starved", "too_many_threads")
    late_s, exchange_s = 12 * 3 * 1.5, 11 * 4 * 0.79
    assert largest["seconds"] == pytest.approx(0.15 * 4 * whole_s + late_s + exchange_s, rel=0.01)
    assert sum(loss["seconds"] for loss in others) == pytest.approx(12 * 4 * 0.01, rel=0.05)


def test_a_rank_that_sleeps_in_exchanges_too() -> None:
    """They stand still then for all ranks; it is the sleeper's loss, not the link's."""
    sim = Simulation(2)
    for step in range(20):
        begun = list(sim.now)
        sim.spend(0, "compute", 1.0)
        sim.spend(1, "compute", 2.0 if step % 2 else 1.0)
        sim.meet("ulysses", (0, 1), 0.01 if step % 4 else 4.0)
        sim.step("0000_0", step, 1, [1, 1], LAYOUT, begun)
    for r in (0, 1):
        sim.phase(r, "denoise", 0.0, "0000_0")
    samples = [
        {"time_s": sim.clock(0, now), "host": {"cpu_all_s": 2 * now}, "gpus": [],
         "ranks": [{"rank": r, "ran_s": 20 * now / sim.now[0], "starved_s": 0.0, "major_faults": 0} for r in (0, 1)]}
        for now in (0.0, sim.now[0])
    ]  # fmt: skip
    (largest, *others) = lost_by(sim.events(), [node(samples)])
    assert (largest["code"], largest["ranks"], largest["cause"]["code"]) == ("loss_wait", [1], "asleep")
    assert largest["seconds"] == pytest.approx(10 * 1.0 + 5 * 2 * (4.0 - 0.1))
    assert [loss["seconds"] for loss in others] == pytest.approx([15 * 2 * 0.01 + 5 * 2 * 0.1])


@pytest.mark.parametrize(("cpus", "cause"), [(2, "too_many_threads"), (16, "busy_cpus")])
def test_cores_that_were_not_free(cpus: int, cause: str) -> None:
    sim = simulated()
    samples = [
        {"time_s": sim.clock(0, float(n)), "host": {"cpu_all_s": cpus * float(n)}, "gpus": [],
         "ranks": [{"rank": r, "ran_s": 0.6 * n, "starved_s": 0.4 * n, "major_faults": 0} for r in range(4)]}
        for n in range(30)
    ]  # fmt: skip
    (largest, *_) = lost_by(sim.events(), [node(samples)])
    assert (largest["code"], largest["ranks"], largest["cause"]["code"]) == ("loss_starved", [0, 1, 2, 3], cause)
    assert largest["share"] == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(4))
def test_a_clock_that_is_held_down_on_every_card(seed: int) -> None:
    """No rank is slower than another, and yet a part of the speed is lost."""
    sim, held = simulated(), 0.4 * Random(seed).uniform(0.5, 2)
    events = [
        replace(e, meta=replace(e.meta, device="cuda", device_uuid=f"GPU-{r}")) for r, e in enumerate(sim.events())
    ]
    gpus = [{"index": n, "uuid": f"GPU-{n}", "name": "X", "sm_mhz_max": 2000} for n in range(4)]
    reading = {"sm_mhz": 2000 * (1 - held), "throttled": ["too hot (hardware)"], "processes": [[0, 1]]}
    samples = [
        {"time_s": sim.clock(0, 0.5 * n), "host": {}, "ranks": [], "gpus": [{"gpu": g} | reading for g in range(4)]}
        for n in range(30)
    ]
    (largest, *_) = lost_by(events, [node(samples, gpus)])
    assert largest["code"] == "loss_held_down"
    assert largest["seconds"] == pytest.approx(10 * held)
