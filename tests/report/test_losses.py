"""The verdict names the largest loss, who caused it and why; simulated runs whose losses are known, at many sizes."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from opensora_launch.report.accounting import account
from opensora_launch.report.device_use import nodes_of
from opensora_launch.report.diagnosis import Evidence, findings
from opensora_launch.report.losses import LEAST_LOSS, losses, verdict
from opensora_launch.report.markdown import summary_lines
from opensora_launch.report.wording import Message, say
from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.events import RankEvents
from opensora_launch.telemetry.failure import Failure, record_failure
from opensora_launch.telemetry.samples import NodeSamples
from tests.report.checked import build, unworded
from tests.report.synthetic import Simulation, a_plan, plain_simulation, write_run

LAYOUT = "dp1 cfg1 ring1 ulysses4"


def simulated(
    world: int = 4,
    *,
    setup: float = 0.2,
    load: float = 0.2,
    text: float = 0.0,
    slow: float = 0.0,
    exchange: float = 0.01,
    vae: float = 0.0,
    save: float = 0.0,
    idle: float = 0.0,
) -> Simulation:
    """Ten steps of a second on each rank; `slow` on rank 2, text, VAE and save on rank 0 alone.

    In steps that last longer by `idle` in all, the last rank has no row.
    """
    sim, everyone = Simulation(world), tuple(range(world))
    for phase, seconds in (("setup", setup), ("load", load)):
        for r in everyone:
            begun = sim.now[r]
            sim.spend(r, phase, seconds)
            sim.phase(r, phase, begun)
    _alone(sim, "text", text)
    begun_all = list(sim.now)
    for step in range(10):
        begun_step, own = list(sim.now), [1] * world
        if idle and step % 2:
            own[-1] = 0
        for r in everyone:
            sim.spend(r, "compute" if own[r] else "idle", 1.0 + (slow / 10 if r == 2 else 0.0) + idle / 5 * (step % 2))
        sim.meet("ulysses", everyone, exchange, [r for r in everyone if not own[r]])
        sim.step("0000_0", step, 1, own, LAYOUT, begun_step)
    for r in everyone:
        sim.phase(r, "denoise", begun_all[r], "0000_0")
    for phase, seconds in (("vae", vae), ("save", save)):
        _alone(sim, phase, seconds)
    return sim


def _alone(sim: Simulation, phase: str, seconds: float) -> None:
    begun = list(sim.now)
    sim.spend(0, phase, seconds)
    sim.phase(0, phase, begun[0], "0000_0")
    begun_wait = sim.now[1]
    sim.meet("text", tuple(range(sim.world)), 0.0)
    for r in range(1, sim.world):
        sim.phase(r, "text" if phase == "text" else "setup", begun_wait)


def lost_by(events: Sequence[RankEvents], nodes: Sequence[NodeSamples] = ()) -> list[Message]:
    accounts = account(events)
    evidence = Evidence(events, accounts, nodes_of(nodes, accounts), 24)
    found = losses(evidence, findings(evidence))
    assert [problem for loss in found for problem in unworded(loss)] == []
    return found


def test_a_healthy_run_lost_nothing() -> None:
    lost = lost_by(simulated().events())
    assert max(loss["share"] for loss in lost) < LEAST_LOSS
    assert verdict(lost)["code"] == "verdict_none"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("code", "ranks", "doing", "seconds", "options"),
    [
        ("loss_wait", [0], "doing_vae", 3 * 6, {"vae": 6}),
        ("loss_wait", [0], "doing_text", 3 * 6, {"text": 6}),
        ("loss_wait", [0], "doing_save", 3 * 6, {"save": 6}),
        ("loss_wait", [2], "doing_compute", 3 * 8, {"slow": 8}),
        ("loss_part", [0, 1, 2, 3], "lost_load", 4 * 8, {"load": 8}),
        ("loss_part", [0, 1, 2, 3], "lost_setup", 4 * 8, {"setup": 8}),
        ("loss_exchange", [0, 1, 2, 3], None, 4 * 10 * 0.5, {"exchange": 0.5}),
        ("loss_part", [3], "lost_idle", None, {"idle": 8}),
    ],
)
def test_one_cause_of_any_size(
    code: str, ranks: list[int], doing: str | None, seconds: float | None, options: dict[str, Any], seed: int
) -> None:
    factor = Random(seed).uniform(0.5, 2.0)
    scaled = {name: value * factor for name, value in options.items()}
    sim = simulated(**scaled)
    largest = verdict(lost_by(sim.events()))["largest"]
    assert (largest["code"], sorted(largest["ranks"])) == (code, ranks)
    assert (largest.get("doing") or largest.get("what") or {}).get("code") == doing
    if seconds is not None:
        assert largest["seconds"] == pytest.approx(seconds * factor)
        assert largest["share"] == pytest.approx(seconds * factor / (4 * max(sim.now)))


NAMED = {
    "vae": (3, "loss_wait", "doing_vae"),
    "text": (3, "loss_wait", "doing_text"),
    "save": (3, "loss_wait", "doing_save"),
    "slow": (3, "loss_wait", "doing_compute"),
    "load": (4, "loss_part", "lost_load"),
    "setup": (4, "loss_part", "lost_setup"),
    "exchange": (40, "loss_exchange", None),
}  # of how many seconds of all ranks together one second is, and the loss


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("one", "other"), [("vae", "slow"), ("text", "load"), ("exchange", "save"), ("slow", "setup"), ("exchange", "vae")]
)
def test_of_two_causes_the_larger_comes_first(one: str, other: str, seed: int) -> None:
    draw = Random(f"{one} {other} {seed}")
    seconds: dict[str, Any] = {name: 24 / NAMED[name][0] * draw.uniform(0.5, 2) for name in (one, other)}
    lost = {name: NAMED[name][0] * seconds[name] for name in seconds}
    found = verdict(lost_by(simulated(**seconds).events()))
    order = [
        (f["code"], (f.get("doing") or f.get("what") or {}).get("code")) for f in (found["largest"], *found["next"])
    ]
    assert order == [NAMED[name][1:] for name in sorted(lost, key=lambda name: -lost[name])]


@pytest.mark.parametrize("seed", range(8))
def test_a_slow_link_is_named_with_all_who_wait_for_it(seed: int) -> None:
    """Ranks 2 and 3 exchange slowly, and 0 and 1 wait for them in the next exchange of all."""
    sim, more = Simulation(4), 0.4 * Random(seed).uniform(0.5, 2)
    for step in range(12):
        begun = list(sim.now)
        for r in range(4):
            sim.spend(r, "compute", 1.0)
        sim.meet("ulysses", (0, 1), 0.01)
        sim.meet("ulysses", (2, 3), 0.01 + more)
        sim.meet("video", (0, 1, 2, 3), 0.0)
        sim.step("0000_0", step, 1, [1] * 4, "dp1 cfg2 ring1 ulysses2", begun)
    for r in range(4):
        sim.phase(r, "denoise", 0.0, "0000_0")
    (largest, *_) = lost_by(sim.events())
    assert (largest["code"], largest["axis"], largest["link"]["ranks"]) == ("loss_exchange", "ulysses", [2, 3])
    assert largest["seconds"] == pytest.approx(12 * 4 * (0.01 + more), rel=0.05)


def test_a_chain_of_waits_names_its_end() -> None:
    """Rank 1 waits for rank 2, and rank 0 for rank 1: all of it is for rank 2, which runs the VAE."""
    sim = Simulation(3)
    begun = list(sim.now)
    sim.spend(2, "vae", 8.0)
    sim.phase(2, "vae", begun[2], "0000_0")
    sim.meet("tp", (1, 2), 0.0)
    sim.spend(1, "vae", 0.001)
    sim.phase(1, "vae", begun[1], "0000_0")
    sim.meet("ulysses", (0, 1), 0.0)
    sim.phase(0, "vae", begun[0], "0000_0")
    (largest, *_) = lost_by(sim.events())
    assert (largest["code"], largest["ranks"], largest["waiting"]) == ("loss_wait", [2], [0, 1])
    assert largest["seconds"] == pytest.approx(16.0, rel=0.01)


def test_what_is_lost_a_little_on_every_rank_in_turn() -> None:
    """No rank owns it, and together it is large."""
    sim, everyone = Simulation(8), tuple(range(8))
    for step in range(32):
        begun = list(sim.now)
        for r in everyone:
            sim.spend(r, "compute", 1.2 if step % 8 == r else 1.0)
        sim.meet("ulysses", everyone, 0.0)
        sim.step("0000_0", step, 1, [1] * 8, LAYOUT, begun)
    for r in everyone:
        sim.phase(r, "denoise", 0.0, "0000_0")
    (largest, *_) = lost_by(sim.events())
    assert (largest["code"], largest["ranks"], largest["doing"]["code"]) == (
        "loss_in_turn", list(everyone), "doing_compute",
    )  # fmt: skip
    assert largest["seconds"] == pytest.approx(32 * 7 * 0.2)


def test_ranks_that_end_early() -> None:
    sim = plain_simulation(2)
    sim.spend(1, "save", 20.0)
    sim.phase(1, "save", sim.now[1] - 20.0)
    (largest, *_) = lost_by(sim.events())
    assert (largest["code"], largest["ranks"]) == ("loss_ends", [0])


def test_a_run_that_failed_says_so_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", a_plan(4), [simulated(vae=8).events()])
    failure = Failure(rank=1, host="h", kind="failure", message="RuntimeError: boom\nmore", phase="denoise")
    record_failure(AttemptDir(run / "attempts/0"), failure)
    report = build(run)
    assert report["verdict"]["code"] == "run_failed"
    assert say(report["verdict"]).endswith("0 of 1 video made. RuntimeError: boom")
    assert report["attempts"][0]["losses"][0]["code"] == "loss_wait"


def test_the_first_line_of_the_terminal_and_of_the_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", a_plan(4), [simulated(vae=8).events()], done=["0000_0"])
    report = build(run)
    first = "Largest loss: rank 0 ran the VAE while ranks 1, 2, 3 waited: 24.0 s, 32% of all"
    assert summary_lines(report)[0] == first
    assert (run / "report.md").read_text().splitlines()[2].startswith(f"**{first}")


def test_nothing_is_known_without_events(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", a_plan(2), [[]], done=["0000_0"])
    assert build(run)["verdict"] == {"code": "verdict_unknown"}
