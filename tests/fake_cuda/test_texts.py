"""Real text encoders on tensors that say they are on CUDA: whole, and layer by layer from pinned memory."""

import gc
from pathlib import Path

import pytest
import torch
from torch import nn

from opensora_launch.schema.config import ModelConfig
from tests.fake_cuda.making import NO_MEMORY, make, on_both, plan_of

pytestmark = pytest.mark.fake_cuda


def test_whole(model: ModelConfig, tmp_path: Path) -> None:
    (ledger,) = on_both(plan_of(1, model=model), tmp_path)
    assert ledger["registered_in_all"] == 0


def test_layer_by_layer(model: ModelConfig, tmp_path: Path) -> None:
    """T5 leaves with its pinned memory without the collector, which may run long after the transformer was loaded."""
    (ledger,) = on_both(plan_of(1, model=model), tmp_path, env=NO_MEMORY, prepare=gc.disable)
    assert ledger["registered_in_all"] > 0
    assert ledger["registered"] == 0


def leave_the_embedding() -> None:
    """Move T5 without the embedding that its encoder uses, as transformers 5 needs it."""
    from opensora_launch.engines import text_team

    move = text_team._move_rest

    def moved(network: nn.Module, device: torch.device) -> None:
        move(network, device)
        for name, part in network.named_modules():
            if name.endswith("embed_tokens"):
                part.weight = nn.Parameter(part.weight.cpu(), requires_grad=False)

    text_team._move_rest = moved


def test_an_embedding_left_on_the_cpu_is_found(model: ModelConfig, tmp_path: Path) -> None:
    """The tier is worth something: this is what every card with little memory met."""
    with pytest.raises(AssertionError, match=r"found at least two devices, cuda:0 and cpu! \(aten\.embedding"):
        make(plan_of(1, model=model), tmp_path, fake=True, env=NO_MEMORY, prepare=leave_the_embedding)
