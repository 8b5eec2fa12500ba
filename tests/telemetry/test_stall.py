"""Who is named for a stall, from heartbeats alone."""

import math
from dataclasses import replace

import pytest

from opensora_launch.telemetry.stall import Beat, find_guilty

NOW = 10_000.0
ALL = (0, 1, 2, 3)


def beat(rank: int, **changes: object) -> Beat:
    """A rank that lives and waits since 60 s in collective 1234 of all four ranks."""
    waiting = Beat(
        rank=rank,
        host="h",
        pid=100 + rank,
        time_s=NOW - 0.2,
        state="running",
        phase="denoise",
        video="0000_0",
        step=7,
        collective="ulysses",
        ranks=ALL,
        sequence=1234,
        inside=True,
        progress_s=NOW - 60,
    )
    return replace(waiting, **changes)  # type: ignore[arg-type]


def others(*odd: Beat) -> list[Beat]:
    """Four ranks that wait, with the odd ones in place of theirs."""
    by_rank = {b.rank: b for b in odd}
    return [by_rank.get(rank, beat(rank)) for rank in ALL]


def test_a_silent_rank_is_named_with_step_and_collective() -> None:
    verdict = find_guilty(others(beat(2, time_s=NOW - 31, progress_s=NOW - 31.2)), NOW, 0)
    assert (verdict.rank, verdict.stalled_s) == (2, math.inf)
    assert verdict.message == (
        "rank 2 on host h (pid 102) has been silent for 31 s; "
        "last seen in phase denoise, video 0000_0, step 7, collective 'ulysses' (#1234)"
    )


def test_the_first_to_fall_silent_is_named() -> None:
    beats = others(beat(1, time_s=NOW - 20), beat(3, time_s=NOW - 25, host="g"))
    assert find_guilty(beats, NOW, 0).message.startswith("rank 3 on host g (pid 103) has been silent for 25 s")


@pytest.mark.parametrize(("silent_s", "said"), [(5.0, "is alive but has not moved"), (1.5, "has been silent for 2 s")])
def test_how_long_is_silent_can_be_set(silent_s: float, said: str) -> None:
    beats = others(beat(1, time_s=NOW - 2, inside=False))
    assert said in find_guilty(beats, NOW, 0, silent_s=silent_s).message


def test_a_rank_that_lives_but_is_in_no_collective() -> None:
    verdict = find_guilty(others(beat(1, inside=False, sequence=1230, progress_s=NOW - 61)), NOW, 0)
    assert (verdict.rank, verdict.stalled_s) == (1, 61)
    assert verdict.message == (
        "rank 1 on host h (pid 101) is alive but has not moved for 61 s; "
        "last seen in phase denoise, video 0000_0, step 7, after collective 'ulysses' (#1234)"
    ).replace("1234", "1230")


def test_a_rank_that_still_loads_has_no_step() -> None:
    loads = beat(1, phase="load", video=None, step=None, collective=None, ranks=(), sequence=0, inside=False)
    verdict = find_guilty(others(loads), NOW, 0)
    assert verdict.message.endswith("has not moved for 60 s; last seen in phase load, before any collective")


def test_of_two_outside_the_one_longer_still_is_named() -> None:
    beats = others(beat(1, inside=False, progress_s=NOW - 3), beat(2, inside=False, progress_s=NOW - 62))
    assert (find_guilty(beats, NOW, 0).rank, find_guilty(beats, NOW, 0).stalled_s) == (2, 62)


def test_a_rank_that_moves_is_not_stalled() -> None:
    """It is named as the one waited for, but with so short a time that nobody is stopped."""
    verdict = find_guilty(others(beat(1, inside=False, progress_s=NOW - 0.4)), NOW, 0)
    assert verdict.rank == 1
    assert verdict.stalled_s == pytest.approx(0.4)


def test_waiting_is_followed_from_rank_to_rank() -> None:
    """0 waits for 1, 1 waits in another group for 3, and 3 computes."""
    beats = [
        beat(0, ranks=(0, 1), sequence=5),
        beat(1, ranks=(1, 3), sequence=8, collective="cfg"),
        beat(2, ranks=(2,), sequence=1, inside=False),
        beat(3, ranks=(1, 3), sequence=7, collective="cfg", inside=False, progress_s=NOW - 59),
    ]
    assert find_guilty(beats, NOW, 0).message.startswith(
        "rank 3 on host h (pid 103) is alive but has not moved for 59 s"
    )


def test_a_missing_rank_is_named_with_who_waits() -> None:
    verdict = find_guilty(others()[:3], NOW, 0)
    assert verdict.rank == 3
    assert verdict.message.startswith("rank 3 has no heartbeat")
    assert "rank 0 on host h (pid 100) waits for it, last seen in phase denoise" in verdict.message
    chained = [beat(0, ranks=(0, 1)), beat(1, ranks=(1, 3), sequence=2)]
    assert find_guilty(chained, NOW, 0).rank == 3


def test_a_failed_rank_comes_first() -> None:
    beats = others(beat(1, state="failed", time_s=NOW - 9), beat(2, time_s=NOW - 50))
    assert find_guilty(beats, NOW, 0).message.startswith(
        "rank 1 on host h (pid 101) has failed; last seen in phase denoise"
    )


def test_a_process_that_is_gone_comes_before_its_victims() -> None:
    beats = others(beat(1, state="failed"), beat(2, time_s=NOW - 50), beat(3, time_s=NOW - 9))
    verdict = find_guilty(beats, NOW, 0, gone=[3])
    assert (verdict.rank, verdict.stalled_s) == (3, math.inf)
    assert verdict.message.startswith("rank 3 on host h (pid 103) ended without an error message: killed, or out of")


def test_a_rank_that_ended_is_not_silent_but_done() -> None:
    verdict = find_guilty(others(beat(3, state="done", time_s=NOW - 90, inside=False)), NOW, 0)
    assert (verdict.rank, verdict.stalled_s) == (3, math.inf)
    assert "has ended, but others wait for it" in verdict.message


def test_a_done_rank_that_nobody_waits_for_is_not_named() -> None:
    beats = [beat(0, ranks=(0, 1)), beat(1, ranks=(0, 1), inside=False), beat(2, state="done", time_s=0.0)]
    assert find_guilty(beats, NOW, 0).rank == 1


def test_a_rank_in_an_earlier_collective_of_the_group_is_behind() -> None:
    verdict = find_guilty(others(beat(2, sequence=1233)), NOW, 0)
    assert (verdict.rank, verdict.stalled_s) == (2, 60)
    assert "rank 2 on host h (pid 102) is behind the others" in verdict.message
    assert verdict.message.endswith("collective 'ulysses' (#1233)")


def test_ranks_in_different_collectives_are_a_mismatch() -> None:
    beats = [beat(0, ranks=(0, 1), sequence=5), beat(1, ranks=(0, 1, 2), sequence=3, collective="cfg"), beat(2)]
    beats[2] = beat(2, ranks=(0, 1, 2), sequence=3, collective="cfg")
    verdict = find_guilty(beats, NOW, 0)
    assert verdict.rank is None
    assert verdict.message == (
        "ranks wait for each other in different collectives: "
        "rank 0 on host h (pid 100) in 'ulysses' (#5) of ranks 0, 1; "
        "rank 1 on host h (pid 101) in 'cfg' (#3) of ranks 0, 1, 2"
    )


def test_all_in_the_same_collective_is_the_link() -> None:
    verdict = find_guilty(others(beat(2, progress_s=NOW - 40)), NOW, 0)
    assert (verdict.rank, verdict.stalled_s) == (None, 40)
    assert "ranks 0, 1, 2, 3 are all in collective 'ulysses' (#1234)" in verdict.message


@pytest.mark.parametrize("me", ALL)
def test_every_victim_names_the_same_rank(me: int) -> None:
    beats = others(beat(2, inside=False, progress_s=NOW - 60.5))
    if me == 2:
        beats = [replace(b, ranks=ALL, inside=True) if b.rank != 1 else replace(b, inside=False) for b in others()]
    assert find_guilty(beats, NOW, me).rank == (1 if me == 2 else 2)
