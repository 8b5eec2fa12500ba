"""Pinned host memory has the exact size, and is given back with its last view."""

import pytest
import torch

from opensora_launch.errors import UserError
from opensora_launch.parallel.host_memory import host_memory
from tests.fake_cuda.hardware import CudaRuntime
from tests.fake_cuda.ledger import LEDGER

NBYTES = 5 * 2**20 + 32


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> CudaRuntime:
    runtime = CudaRuntime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return runtime


def test_it_is_pinned_until_the_last_view_is_gone(runtime):
    flat = host_memory(NBYTES, torch.device("cuda", 0))
    assert flat.shape == (NBYTES,)
    assert LEDGER.registered == {flat.data_ptr(): NBYTES}
    view = flat[32:].view(torch.float32)
    del flat
    assert sum(LEDGER.registered.values()) == NBYTES
    assert not view.any()
    del view
    assert LEDGER.registered == {}


def test_memory_that_cuda_refuses_is_one_line(runtime, monkeypatch):
    monkeypatch.setattr(runtime, "cudaHostRegister", lambda address, nbytes, flags: 2)
    with pytest.raises(
        UserError, match=r"^0\.0 GiB of host memory cannot be pinned \(cudaError 2\): free memory on th"
    ):
        host_memory(NBYTES, torch.device("cuda", 0))


def test_a_cpu_pins_nothing():
    assert host_memory(NBYTES, torch.device("cpu")).numel() == NBYTES
    assert LEDGER.registered == {}
