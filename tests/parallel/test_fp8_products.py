"""Products in fp8 do not depend on how the tokens are shared among ranks."""

from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from opensora_launch.engines.placed_weights import blocks_of
from opensora_launch.model import load_mmdit
from opensora_launch.model.fp8_products import use_fp8_products
from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.weights import random_tensors
from opensora_launch.parallel.mesh import Groups, build_meshes
from opensora_launch.parallel.sharded_model import ShardedModel
from opensora_launch.plan.layout import Layout
from opensora_launch.sampling.latents import position_ids
from opensora_launch.schema.config import MmditConfig
from tests.parallel.test_sharded_model import SMALL, rows_of
from tests.ranks import run_ranks

CPU, DEEP = torch.device("cpu"), SMALL | {"depth": 2, "depth_single_blocks": 3}
ROWS, TEXT, VIDEO = 2, 5, 23


def predictions(layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The prediction of this layout, with products in full and in fp8."""
    with torch.device("meta"):
        empty = MMDiT(MmditConfig(**DEEP))
    model = load_mmdit(DEEP, random_tensors(empty, seed=0, dtype=dtype, device=CPU))
    kernel = choose_kernel("cpu_flash", device=CPU, dtype=dtype, head_dim=8).call
    groups = Groups(timedelta(seconds=60))
    mesh = build_meshes([layout], dist.get_rank(), groups, lambda *args: nullcontext())[layout]
    latents, rows = rows_of(ROWS, TEXT, VIDEO, dtype)
    sharded, ids = ShardedModel(model.forward, kernel, {ROWS: mesh}), position_ids(1, 1, VIDEO, CPU)
    full = sharded.predict(latents, ids, rows)
    use_fp8_products([*blocks_of(model).values()])
    return full, sharded.predict(latents, ids, rows)


@pytest.mark.parametrize(
    "layout", [Layout(ulysses=2), Layout(ring=2), Layout(cfg=2), Layout(ulysses=3), Layout(ring=3)], ids=str
)
def test_any_ranks_predict_what_one_does(layout, tmp_path):
    """In fp64 no rounding error moves a number to the next one in fp8; in fp32 few are moved."""
    for dtype, most in ((torch.float64, 1e-10), (torch.float32, 0.02)):
        ((full, alone),) = run_ranks(1, tmp_path, predictions, Layout(), dtype)
        error = (alone - full).norm()
        assert 2e-3 < error / full.norm() < 0.1
        for _, got in run_ranks(layout.ranks, tmp_path, predictions, layout, dtype):
            assert (got - alone).norm() < most * error
