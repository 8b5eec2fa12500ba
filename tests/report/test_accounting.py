"""Every second of every rank is found where the simulation spent it."""

from dataclasses import replace

import pytest

from opensora_launch.report.accounting import WALL_PARTS, account, waited_for
from opensora_launch.report.steps import count_row_forwards, step_times
from opensora_launch.report.wording import message
from opensora_launch.telemetry.events import Collective, RankEvents
from tests.report.synthetic import Simulation, plain_simulation, random_simulation


@pytest.mark.parametrize("seed", range(150))
def test_parts_are_the_truth_and_add_up(seed: int) -> None:
    sim = random_simulation(seed)
    accounts = account(sim.events())
    for r, found in enumerate(accounts.ranks):
        assert found.wall_s == pytest.approx(sim.now[r] - sim.start[r], abs=1e-5)
        assert sum(found.parts.values()) == pytest.approx(found.wall_s, rel=1e-9)
        assert list(found.parts) == list(WALL_PARTS)
        assert dict(found.parts) == pytest.approx(sim.truth[r], abs=1e-5)
        axes = {axis: seconds for axis, seconds in sim.by_axis[r].items() if seconds > 0}
        assert dict(found.communication_by_axis) == pytest.approx(axes, abs=1e-5)
    assert accounts.wall_s == pytest.approx(max(sim.now), abs=1e-5)
    assert (len(accounts.unknown) > 0) == (len(set(sim.hosts)) > 1)


@pytest.mark.parametrize("seed", range(0, 150, 5))
def test_who_was_waited_for(seed: int) -> None:
    sim = random_simulation(seed)
    found = waited_for(account(sim.events()))
    truth: dict[int, float] = {}
    for (_, on), seconds in sim.waited.items():
        truth[on] = truth.get(on, 0.0) + seconds
    got = {w.rank: w.seconds for w in found}
    for rank in truth.keys() | got.keys():
        assert got.get(rank, 0.0) == pytest.approx(truth.get(rank, 0.0), abs=1e-4)
    for w in found:
        assert sum(w.by.values()) == pytest.approx(w.seconds)
        assert sum(w.while_in.values()) == pytest.approx(w.seconds, abs=1e-6)
        assert w.rank not in w.by


@pytest.mark.parametrize("seed", range(0, 150, 10))
def test_parts_add_up_whatever_the_events_are(seed: int) -> None:
    """Ranks that were cut off, blocks that overlap or stick out, collectives without partners."""
    whole = random_simulation(seed).events()
    for n, events in enumerate(whole):
        broken = replace(
            events,
            end=None if n % 2 else events.end,
            collectives=tuple(replace(c, end_s=c.end_s + 0.3) for c in events.collectives),
            steps=tuple(replace(s, start_s=s.start_s - 5.0, end_s=s.end_s + 0.1) for s in events.steps),
        )
        (found,) = account([broken]).ranks
        assert sum(found.parts.values()) == pytest.approx(found.wall_s, rel=1e-9)
        assert found.complete == (n % 2 == 0)
        assert min(found.parts.values()) >= 0


def test_waiting_names_the_late_rank_and_what_it_did() -> None:
    """Rank 1 computes twice as long, but begins a second before rank 0, which encodes text: 3 + 3 x 4 + 2 s."""
    accounts = account(plain_simulation(2, slow=[1.0, 2.0]).events())
    first, second = (r.parts for r in accounts.ranks)
    assert [first["compute"], second["compute"]] == pytest.approx([18, 36])
    assert [first["communication"], second["communication"]] == pytest.approx([1.25, 1.25])
    assert [first["waiting"], second["waiting"]] == pytest.approx([17, 0])
    (late,) = waited_for(accounts)
    assert late.rank == 1
    assert dict(late.by) == pytest.approx({0: 17})
    assert dict(late.while_in) == pytest.approx({"compute": 17})


def test_missing_ranks_make_waiting_unknown_not_invented() -> None:
    alone = account(plain_simulation(2, slow=[1.0, 2.0]).events()[:1])
    (found,) = alone.ranks
    assert found.parts["waiting"] == 0
    assert found.parts["communication"] == pytest.approx(17 + 1.25)
    assert alone.unknown == (message("waits_for_missing_ranks"),)


def test_collectives_that_do_not_match_are_said() -> None:
    first, second = plain_simulation(2, slow=[1.0, 2.0]).events()
    other = tuple(replace(c, axis="cfg") for c in second.collectives)
    accounts = account([first, replace(second, collectives=other)])
    assert accounts.ranks[0].parts["waiting"] == 0
    assert accounts.unknown == (message("collectives_differ"),)


def test_one_name_for_two_machines_is_seen() -> None:
    first, second = plain_simulation(2).events()
    moved = replace(second, meta=replace(second.meta, start_epoch_s=second.meta.start_epoch_s + 100))
    (unknown,) = account([first, moved]).unknown
    assert unknown == message("host_clocks_differ", host="host-a")


def one_rank(*collectives: Collective) -> RankEvents:
    sim = Simulation(1)
    sim.spend(0, "load", 10.0)
    sim.phase(0, "load", 0.0)
    (events,) = sim.events()
    return replace(events, collectives=collectives)


def test_overlapping_collectives_are_counted_once() -> None:
    both = one_rank(Collective("ring", (0,), 1, 1, 5001.0, 5004.0), Collective("cfg", (0,), 2, 1, 5003.0, 5006.0))
    (found,) = account([both]).ranks
    assert dict(found.communication_by_axis) == pytest.approx({"ring": 3.0, "cfg": 2.0})
    assert found.parts["load"] == pytest.approx(5.0)


def test_step_times_are_from_the_first_to_the_last() -> None:
    sim = plain_simulation(2, slow=[1.0, 2.0])
    events = sim.events()
    two, one = step_times(events, account(events).ranks)
    assert (two["rows"], two["count"], two["layout"]) == (2, 4, "dp1 cfg1 ring1 ulysses2 tp1")
    assert [two["median_s"], two["min_s"], two["max_s"]] == pytest.approx([8.25, 8.25, 8.25])
    assert (one["rows"], one["count"]) == (1, 1)
    assert one["median_s"] == pytest.approx(4.25)
    assert count_row_forwards([events]) == 9
    assert count_row_forwards([events, events]) == 18
