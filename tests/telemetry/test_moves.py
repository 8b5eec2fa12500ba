"""What moves, whatever the clocks of others say."""

from opensora_launch.telemetry.moves import WATCHED_S, Moves
from opensora_launch.telemetry.stall import Beat
from tests.telemetry.hand_clock import HandClock, clock  # noqa: F401 a fixture


def beat(time_s: float, still_s: float = 2.0) -> Beat:
    return Beat(0, "h", 1, time_s, "running", "denoise", progress_s=time_s - still_s)


def test_only_a_change_is_a_move(clock: HandClock) -> None:  # noqa: F811
    moves, begun = Moves(), clock.now
    looks = []
    for value in (7, 7, 3, 3):
        looks.append(moves.look("x", value))
        clock.now += 1
    assert [look.moved for look in looks] == [False, False, True, False]
    assert [look.still_s for look in looks] == [0, 1, 0, 1]
    assert looks[-1].since_s == begun + 2
    assert not moves.look("another", 3).moved


def test_a_look_long_ago_says_nothing(clock: HandClock) -> None:  # noqa: F811
    """This process was suspended, and all that it watches perhaps too."""
    moves = Moves()
    moves.look("x", 7)
    clock.now += WATCHED_S
    assert moves.look("x", 7)[1:] == (False, clock.now, clock.now)
    clock.now += WATCHED_S
    assert not moves.look("x", 8).moved


def test_beats_of_any_clock_get_the_time_of_this_process(clock: HandClock) -> None:  # noqa: F811
    """The rank stood still for 2 s when it wrote; an hour ahead, or behind, it is the same."""
    for written in (1e9, clock.now + 3600, clock.now - 3600):
        moves, begun = Moves(), clock.now
        (first,) = moves.own_time([beat(written)])
        assert (first.time_s, first.progress_s) == (begun, begun - 2)
        clock.now += 1
        assert moves.own_time([beat(written)]) == [first]
        clock.now += 1
        (moved,) = moves.own_time([beat(written + 0.5)])
        assert (moved.time_s, moved.progress_s) == (begun + 2, begun)
