"""The harness itself: ranks that answer, fail or hang, and skips that are not overlooked."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import everyone, run_ranks

HERE = Path(__file__).parent


def add_ranks(start: float) -> tuple[float, int]:
    total = torch.tensor(start + dist.get_rank())
    dist.all_reduce(total, group=everyone())
    return total.item(), torch.get_num_threads()


def fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the reason")
    dist.barrier(group=everyone())


def hang_on_rank_1() -> None:
    if dist.get_rank() == 1:
        threading.Event().wait()
    dist.barrier(group=everyone())


def test_ranks_answer_in_order_and_more_than_once(tmp_path: Path) -> None:
    assert run_ranks(2, tmp_path, add_ranks, 1.0) == [(3.0, 1)] * 2
    assert run_ranks(3, tmp_path, add_ranks, 0.0) == [(3.0, 1)] * 3


def test_a_failing_rank_is_shown(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ValueError: the reason"):
        run_ranks(2, tmp_path, fail_on_rank_1)


def test_a_hanging_rank_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"without result or error: \[1\]"):
        run_ranks(2, tmp_path, hang_on_rank_1, timeout=1.0)


SUITE = """
import pytest
def test_passes(): pass
def test_skips(): pytest.skip("no such tool")
@pytest.mark.gpu
def test_gpu(): pytest.skip("no GPU")
"""


def run_suite(folder: Path, text: str, require_all: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(HERE / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    (folder / "test_some.py").write_text(text)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_some.py"]
    env = os.environ | {"REQUIRE_ALL": require_all}
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("require_all", "outcome"), [("0", "1 passed, 2 skipped"), ("1", "1 failed, 1 passed, 1 skipped")]
)
def test_require_all_turns_a_skip_into_a_failure(tmp_path: Path, require_all: str, outcome: str) -> None:
    done = run_suite(tmp_path, SUITE, require_all)
    assert outcome in done.stdout
    assert done.returncode == int(require_all)


def test_require_all_sees_a_module_that_skips_itself(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "import pytest\npytest.importorskip('no_such_module')\n", "1")
    assert "no_such_module" in done.stdout
    assert "1 error" in done.stdout
