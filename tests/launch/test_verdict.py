"""Who failed first, from what ranks and torchrun left behind."""

from typing import Any

import pytest

from opensora_launch.launch.verdict import (
    Exit,
    agent_exits,
    first_failure,
    how_it_ended,
    missing_failure,
    silent_failure,
    step_end,
    was_preempted,
    with_last_words,
)
from opensora_launch.telemetry.failure import Failure
from opensora_launch.telemetry.stall import Beat


def beat(rank: int, time_s: float = 100.0, state: str = "running", **more: Any) -> Beat:
    return Beat(rank=rank, host="h", pid=1000 + rank, time_s=time_s, state=state, phase="denoise", **more)


def test_torchruns_log_is_read() -> None:
    log = (
        "W1120 18:44:56 torch/distributed/elastic/multiprocessing/api.py] Sending process 7 closing signal SIGTERM\n"
        "E1120 18:44:57 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: -9) "
        "local_rank: 1 (pid: 4711) of binary: /usr/bin/python\n"
    )
    assert agent_exits(log) == (Exit(rank=1, code=-9),)


def test_sruns_log_is_read() -> None:
    log = (
        "srun: Job step aborted: Waiting up to 32 seconds for job step to finish.\n"
        "srun: error: n2: task 3: Killed\n"
        "srun: error: n1: tasks 0-1: Exited with exit code 75\n"
        "srun: error: n1: task 2: Segmentation fault (core dumped)\n"
    )
    assert agent_exits(log) == (Exit(3, -9, "n2"), Exit(0, 75, "n1"), Exit(2, -11, "n1"))
    assert was_preempted(agent_exits(log)[1:])


def test_a_rank_that_says_what_is_wrong_with_itself_comes_first() -> None:
    said = Failure(rank=0, host="h", kind="failure", message="mine", traceback="Traceback")
    assert first_failure(said, [beat(0), beat(1)], [Exit(1, -9)], {1}, 1) is said
    user = Failure(rank=0, host="h", kind="user", message="yours")
    assert first_failure(user, [], [Exit(1, -9)], {1}, 1) is user


def test_a_killed_rank_comes_before_what_its_peers_say() -> None:
    said = Failure(rank=0, host="h", kind="failure", message="rank 1 has not moved")
    verdict = first_failure(said, [beat(0), beat(1, step=3, steps=6)], [Exit(1, -11)], set(), 1)
    assert verdict.rank == 1
    assert (
        "rank 1 on host h (pid 1001) was killed by SIGSEGV; last seen in phase denoise, step 3 of 6" in verdict.message
    )


def test_peers_are_believed_before_ranks_that_torchrun_ended() -> None:
    said = Failure(rank=2, host="h", kind="stalled", message="rank 2 is silent")
    exits = [Exit(0, 1), Exit(1, -15)]
    assert first_failure(said, [beat(0), beat(1)], exits, {0, 1}, 1) is said


def test_of_several_exits_the_oldest_heartbeat() -> None:
    exits = [Exit(0, 1), Exit(1, 7), Exit(2, -15)]
    assert first_failure(None, [beat(0, 100.0), beat(1, 99.0), beat(2, 1.0)], exits, set(), 1).rank == 1


def test_ranks_lost_without_a_trace() -> None:
    verdict = first_failure(None, [beat(0), beat(1, 98.0), beat(2, 99.0)], [], {1, 2}, None)
    assert (verdict.rank, verdict.kind) == (1, "failure")
    assert "ended without an error message" in verdict.message
    assert "(exit code of their starter: 3)" in first_failure(None, [], [], set(), 3).message


def test_a_rank_that_ended_before_its_log() -> None:
    """Its host, and the error, from the log of its starter, where the ranks' lines are mixed."""
    log = (
        "W1120 torchrun says something\n"
        "Traceback (most recent call last):\nTraceback (most recent call last):\n"
        '  File "<frozen runpy>", line 198\n  File "<frozen runpy>", line 198\n'
        "ModuleNotFoundError: No module named 'msgspec'\nModuleNotFoundError: No module named 'msgspec'\n"
        "E1120 failed (exitcode: 1) local_rank: 1 (pid: 7) of binary: python\n"
        "Traceback (most recent call last):\n  File x\ntorch...ChildFailedError:\n"
    )
    found = with_last_words(first_failure(None, [], agent_exits(log), set(), 1), log, "here")
    assert (found.rank, found.host) == (1, "here")
    assert found.message == "ended with exit code 1: ModuleNotFoundError: No module named 'msgspec'"
    srun = "srun: error: n2: task 3: Exited with exit code 1\n/bin/python: No module named opensora_launch\n"
    found = with_last_words(first_failure(None, [], agent_exits(srun), set(), 1), srun, "here")
    assert (found.host, found.message) == ("n2", "ended with exit code 1: No module named opensora_launch")
    known = first_failure(None, [beat(1)], agent_exits(log), set(), 1)
    assert with_last_words(known, log, "here") is known


CANCELLED = "slurmstepd-n1: error: *** STEP 1.0 ON n1 CANCELLED AT 2026-11-29T13:19:06"
KILLED = "srun: error: n2: task 1: Killed\n"


@pytest.mark.parametrize(
    ("log", "how"),
    [
        (f"{CANCELLED} ***\n{KILLED}", "which was cancelled"),
        (f"{CANCELLED} DUE TO TIME LIMIT ***\n{KILLED}", "which was cancelled due to time limit"),
        (
            f"{CANCELLED} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***\n{KILLED}",
            "which was cancelled due to node failure",
        ),
        (f"srun: Job step aborted: Waiting up to 7 seconds for job step to finish.\n{KILLED}", "which was cancelled"),
        (f"srun: error: Node failure on n2\n{CANCELLED} ***\n", "which ended: Node failure on n2"),
        (f"{KILLED}srun: launch/slurm: _step_signal: Terminating StepId=1.1\n{CANCELLED} ***\n", ""),
    ],
)
def test_a_step_that_is_ended_from_outside(log: str, how: str) -> None:
    """After a rank's own end, srun cancels its step too."""
    said = Failure(rank=0, host="h", kind="failure", message="rank 1 has not moved")
    verdict = first_failure(said, [beat(0), beat(1)], agent_exits(log), set(), 1, step_end(log))
    if how:
        assert (verdict.rank, verdict.message) == (-1, f"the ranks ended with their Slurm step, {how}")
    else:
        assert "rank 1 on host h (pid 1001) was killed by SIGKILL" in verdict.message


def test_why_srun_starts_nothing() -> None:
    log = "srun: error: Slurm job 9 has expired\nsrun: Check SLURM_JOB_ID environment variable.\n"
    found = with_last_words(first_failure(None, [], (), set(), 1), log, "here")
    assert found.message.endswith("(exit code of their starter: 1): Slurm job 9 has expired")


def test_silence() -> None:
    beats = [beat(0, 100.0), beat(1, 95.0, step=2, steps=6, collective="ring", sequence=9), beat(2, 10.0, "done")]
    assert silent_failure(beats, 101.0, 10.0) is None
    verdict = silent_failure(beats, 106.0, 10.0)
    assert verdict
    assert (verdict.rank, verdict.kind, verdict.step, verdict.collective) == (1, "stalled", 2, "ring")
    assert "silent for 11 s" in verdict.message
    assert "after collective 'ring' (#9)" in verdict.message


def test_a_rank_that_never_came() -> None:
    assert missing_failure([beat(0), beat(1)], 2, 120.0) is None
    verdict = missing_failure([beat(0), beat(2)], 4, 120.0)
    assert verdict
    assert verdict.rank == 1


def test_exit_codes_in_words() -> None:
    assert how_it_ended(7) == "ended with exit code 7"
    assert "memory" in how_it_ended(-9)
    assert how_it_ended(-6) == "was killed by SIGABRT"
    assert how_it_ended(-34) == "was killed by SIGRTMIN"
    assert how_it_ended(-99) == "was killed by signal 99"


def test_ranks_that_have_stored_and_left() -> None:
    said = "failed (exitcode: {}) local_rank: 1 (pid: 7) of binary: /bin/python\n"
    assert was_preempted(agent_exits(said.format(75) + said.format(-15)))
    assert not was_preempted(agent_exits(said.format(1) + said.format(75)))
    assert not was_preempted(())
