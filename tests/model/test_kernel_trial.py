"""A kernel that fails when it runs, or computes something else, is not chosen, on any rank."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opensora_launch.errors import UserError
from opensora_launch.model import kernel_choice, kernels
from opensora_launch.model.kernel_choice import FASTEST, KernelTarget, choose_kernel, fastest_kernel, try_all
from opensora_launch.worker.process_group import gathered
from tests.ranks import run_ranks

CPU = torch.device("cpu")
Found = tuple[Tensor, Tensor]


def raises(q: Tensor, k: Tensor, v: Tensor) -> Found:
    raise ValueError("no kernel image is available for execution on the device\nCompile with TORCH_USE_CUDA_DSA")


def changed(change: Callable[[Tensor, Tensor], Found]) -> Callable[[Tensor, Tensor, Tensor], Found]:
    return lambda q, k, v: change(*kernels.reference(q, k, v))


WRONG = {
    "flash3": (raises, "ValueError: no kernel image is available for execution on the device"),
    "cudnn": (
        changed(lambda out, lse: (out, lse / math.log(2))),
        "its results differ from the reference by 0, and their",
    ),
    "flash2": (changed(lambda out, lse: (out * torch.nan, lse)), "its results differ from the reference by nan"),
    "sdpa_flash": (
        changed(lambda out, lse: (out, lse.mT)),
        "its results have the shapes (1, 300, 2, 16) and (1, 300, 2)",
    ),
}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that an H100 could use is there, and sdpa_efficient is the fastest that works."""
    for name, (call, _) in WRONG.items():
        if name in kernel_choice.LOADERS:
            monkeypatch.setitem(kernel_choice.LOADERS, name, partial(tuple, [call, "9.9"]))
        else:
            monkeypatch.setitem(kernel_choice.IN_TORCH, name, call)
    monkeypatch.setitem(kernel_choice.IN_TORCH, "sdpa_efficient", kernels.reference)


@pytest.mark.usefixtures("broken")
def test_auto_takes_the_fastest_that_works_and_says_why() -> None:
    kernel = fastest_kernel(FASTEST, KernelTarget((9, 0), torch.bfloat16, 16), CPU)
    assert kernel.name == "sdpa_efficient"
    assert len(kernel.refused) == len(WRONG)
    for line, (name, (_, why)) in zip(kernel.refused, WRONG.items(), strict=True):
        assert line.startswith(f"attention={name} (")
        assert f"does not work here: {why}" in line
        assert "\n" not in line


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("name", WRONG)
def test_a_kernel_that_is_named_and_fails_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match=f"attention={name} .* does not work here.*; use attention=auto") as caught:
        fastest_kernel((name,), KernelTarget((9, 0), torch.bfloat16, 16), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernels_of_this_cpu_pass(dtype: torch.dtype) -> None:
    assert try_all(CPU, dtype, 64) == {"cpu_flash": ""}
    kernel = choose_kernel("auto", device=CPU, dtype=dtype, head_dim=64)
    assert (kernel.name, kernel.refused) == ("cpu_flash", ())


def chosen(kind: str, broken_rank: int) -> tuple[str, tuple[str, ...]]:
    """Choose on ranks of which one has a broken kernel. Returns the kernel and what was passed over, or the error."""
    if torch.distributed.get_rank() == broken_rank:
        kernel_choice.IN_TORCH["cpu_flash"] = raises
    try:
        kernel = choose_kernel(kind, device=CPU, dtype=torch.float32, head_dim=8, agree=gathered)
    except UserError as error:
        return "refused", (str(error),)
    return kernel.name, kernel.passed_over


@pytest.mark.parametrize("broken_rank", [0, 1])
def test_all_ranks_take_the_same_kernel(tmp_path: Path, broken_rank: int) -> None:
    found = run_ranks(2, tmp_path, chosen, "auto", broken_rank)
    assert [name for name, _ in found] == ["reference", "reference"]
    other = (f"attention=cpu_flash works here, but rank {broken_rank} takes reference",)
    assert found[1 - broken_rank][1] == other
    assert "does not work here: ValueError: no kernel image" in found[broken_rank][1][0]


def test_all_ranks_refuse_together(tmp_path: Path) -> None:
    found = run_ranks(2, tmp_path, chosen, "cpu_flash", 1)
    assert found[0] == found[1]
    name, (line,) = found[0]
    assert name == "refused"
    assert line.startswith("rank 1: attention=cpu_flash (torch ")
