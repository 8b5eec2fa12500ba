"""The double refuses what CUDA refuses, and counts what makes the host wait."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks import run_ranks

pytestmark = pytest.mark.fake_cuda


def outcomes() -> tuple[dict[str, str], dict[str, int], list[Any]]:
    """The error of each refused call, the waits of each call that is counted, and some results on the CPU."""
    from tests.fake_cuda.install import install
    from tests.fake_cuda.ledger import LEDGER

    install({})
    cuda = torch.device("cuda", 0)
    x = torch.arange(12.0, device=cuda).view(3, 4)
    host = torch.ones(3, 4)
    refused: dict[str, Callable[[], object]] = {
        "add": lambda: x + host,
        "layer": lambda: torch.nn.Linear(4, 2)(x),
        "cat": lambda: torch.cat([x, host]),
        "index of the CPU's": lambda: host[x[0].long()],
        "numpy": x.numpy,
        "asarray": lambda: np.asarray(x),
        "another GPU": lambda: x + torch.ones(4, device="cuda:1"),
        "data": lambda: setattr(torch.nn.Parameter(x, requires_grad=False), "data", host),
    }
    counted: dict[str, Callable[[], object]] = {
        "item": lambda: x[0, 0].item(),
        "bool": lambda: bool(x.sum() > 1),
        "list as index": lambda: x[[0, 2]],
        "mask": lambda: x[x > 3],
        "nonzero": x.nonzero,
        "equal": lambda: torch.equal(x, x),
        "list to the GPU": lambda: torch.tensor([1.0], device=cuda),
        "to the GPU": lambda: host.to(cuda),
        "pageable": lambda: host.to(cuda, non_blocking=True),
        "to the CPU": x.cpu,
        "slice": lambda: x[1:, None],
        "number": lambda: x.add_(1) + torch.tensor(1.0),
        "full": lambda: torch.full((), 0.5, device=cuda),
        "index on the GPU": lambda: x[torch.arange(2, device=cuda)],
    }
    waits = {name: _waits(call, LEDGER) for name, call in counted.items()}
    x[:, 1] = 0
    x[0] = torch.full((4,), 7.0, device=cuda)
    moved = torch.nn.Linear(4, 2).to(cuda)
    return {name: _error(call) for name, call in refused.items()}, waits, [x.cpu(), str(moved.weight.device)]


def _error(call: Callable[[], object]) -> str:
    try:
        call()
    except (RuntimeError, TypeError) as error:
        return str(error)
    return ""


def _waits(call: Callable[[], object], ledger: Any) -> int:
    before = ledger.waits.total()
    call()
    return int(ledger.waits.total() - before)


def test_what_is_refused_and_counted(tmp_path):
    [(errors, waits, results)] = run_ranks(1, tmp_path, outcomes)
    on_two = "Expected all tensors to be on the same device"
    assert {name: error[:30] for name, error in errors.items()} == {
        **dict.fromkeys(("add", "layer", "cat", "another GPU"), on_two[:30]),
        **dict.fromkeys(("numpy", "asarray"), "can't convert cuda:0 device ty"),
        "index of the CPU's": "indices should be either on cp",
        "data": "incompatible tensor type: data",
    }
    free = ("slice", "number", "full", "index on the GPU")
    assert waits == {name: int(name not in free) for name in waits}
    want = torch.arange(12.0).view(3, 4) + 1
    want[:, 1], want[0] = 0, 7
    assert torch.equal(results[0], want)
    assert results[1] == "cuda:0"
