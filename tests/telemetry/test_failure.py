"""error.json: the first failure, whole."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.failure import Failure, read_failure, record_failure


def failure(rank: int = 2) -> Failure:
    return Failure(
        rank, "h", "failure", f"of rank {rank}: é 한", phase="denoise", step=7, collective="ring", time_s=1.5
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_failure(AttemptDir(tmp_path)) is None
    assert record_failure(AttemptDir(tmp_path), failure())
    assert read_failure(AttemptDir(tmp_path)) == failure()
    assert [p.name for p in tmp_path.iterdir()] == ["error.json"]


def test_first_wins(tmp_path: Path) -> None:
    assert record_failure(AttemptDir(tmp_path), failure(1))
    assert not record_failure(AttemptDir(tmp_path), failure(2))
    assert read_failure(AttemptDir(tmp_path)) == failure(1)
    assert [p.name for p in tmp_path.iterdir()] == ["error.json"]


def test_many_at_once_leave_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda rank: record_failure(AttemptDir(tmp_path), failure(rank)), range(32)))
    assert sum(won) == 1
    assert read_failure(AttemptDir(tmp_path)) == failure(won.index(True))


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert record_failure(AttemptDir(tmp_path), failure(1))
    assert not record_failure(AttemptDir(tmp_path), failure(2))
    assert read_failure(AttemptDir(tmp_path)) == failure(1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rank": 1}'])
def test_what_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "error.json").write_text(text)
    assert read_failure(AttemptDir(tmp_path)) is None
