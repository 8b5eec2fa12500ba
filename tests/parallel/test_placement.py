"""Weights that are gathered or copied block by block compute the same bits as weights that stay."""

from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora_launch.config import LayoutConfig, MmditConfig
from opensora_launch.model import load_mmdit
from opensora_launch.model.attention import choose_attention
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.weights import random_tensors
from opensora_launch.parallel.mesh import Axis, Mesh, build_meshes
from opensora_launch.parallel.placement import FlatLayout, StreamedBlocks, read_share
from opensora_launch.parallel.rows import RowInputs, ShardedModel
from opensora_launch.plan.layout import LayoutFacts, layouts_by_rows
from opensora_launch.sampling.latents import position_ids
from tests.ranks import run_ranks

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "in_channels": 4,
    "vec_in_dim": 6,
    "context_in_dim": 8,
    "hidden_size": 24,
    "num_heads": 3,
    "depth": 2,
    "depth_single_blocks": 3,
    "axes_dim": [2, 2, 4],
    "patch_size": 2,
}


def unrecorded(axis, ranks, nbytes):
    return nullcontext()


def model() -> MMDiT:
    with torch.device("meta"):
        empty = MMDiT(MmditConfig(**SMALL))
    return load_mmdit(SMALL, random_tensors(empty, seed=0, dtype=torch.float32, device=CPU))


def blocks_of(module: MMDiT) -> list[nn.Module]:
    return [*module.double_blocks, *module.single_blocks]


def streamed(module: MMDiT, axis: Axis) -> tuple[StreamedBlocks, int]:
    """The module with its blocks' weights in shares over the axis, and the elements that were read for it."""
    shares, read = [], 0
    for block in blocks_of(module):
        layout, state = FlatLayout.of(block), block.state_dict()
        share = torch.empty(layout.share(axis.size))

        def elements(name: str, first: int, last: int, state: dict[str, Tensor] = state) -> Tensor:
            nonlocal read
            read += last - first
            return state[name].reshape(-1)[first:last]

        read_share(layout, axis.index, axis.size, elements, share)
        shares.append(share)
    return StreamedBlocks(blocks_of(module), shares, axis, CPU), read


def inputs(rows: int) -> tuple[Tensor, Tensor, list[RowInputs]]:
    rng = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 23, 4, generator=rng)
    made = [
        RowInputs(0, 0.5, torch.randn(5, 8, generator=rng), torch.randn(6, generator=rng), torch.zeros(23, 8), 0.0)
        for _ in range(rows)
    ]
    return latents, position_ids(1, 1, 23, CPU), made


def both_ways(fixed: dict[str, int], rows: int) -> tuple[bool, int, int, int]:
    """Equal to the last bit?; elements read here, elements of all blocks, bytes resident here."""
    world = dist.get_world_size()
    facts = LayoutFacts(world, world, SMALL["num_heads"], 1, rows, 28)
    layout = layouts_by_rows(facts, LayoutConfig(**fixed))[-1][1]
    mesh: Mesh = build_meshes([layout], dist.get_rank(), timedelta(seconds=30), unrecorded)[layout]
    kernel = choose_attention("cpu_flash", device=CPU, dtype=torch.float32, head_dim=8).call
    whole = ShardedModel(model(), kernel, {rows: mesh})
    want = [whole.predict(*inputs(rows)) for _ in range(2)]
    module = model()
    every = sum(FlatLayout.of(block).size for block in blocks_of(module))
    store, read = streamed(module, mesh.video)
    parts = ShardedModel(module, kernel, {rows: mesh}, sit_out=store.pass_through)
    got = [parts.predict(*inputs(rows)) for _ in range(2)]  # the second begins with what the first sent for
    store.drain()
    equal = all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    return equal, read, every, store.resident_bytes


@pytest.mark.parametrize(
    ("ranks", "fixed", "rows"),
    [(1, {}, 2), (2, {"ulysses": 2}, 1), (3, {"ring": 3}, 2), (4, {"cfg": 2, "ulysses": 2}, 2), (2, {"cfg": 2}, 1)],
    ids=["1 rank", "ulysses 2", "ring 3", "cfg 2 x ulysses 2", "a rank without a row"],
)
def test_sharded_equals_replicated_bit_for_bit(ranks, fixed, rows, tmp_path):
    results = run_ranks(ranks, tmp_path, both_ways, fixed, rows)
    assert [equal for equal, *_ in results] == [True] * ranks
    numbers = sum(p.numel() for block in blocks_of(model()) for p in block.parameters())
    assert sum(read for _, read, *_ in results) == numbers, "every element is read once, by one rank"
    with torch.device("meta"):
        layouts = [FlatLayout.of(block) for block in blocks_of(MMDiT(MmditConfig(**SMALL)))]
    want = 4 * (2 * ranks * max(x.share(ranks) for x in layouts) + sum(x.share(ranks) for x in layouts))
    assert {resident for *_, resident in results} == {want}
    assert want < 4 * results[0][2] * (1 / ranks + 0.9)


def test_views_do_not_overlap_and_are_aligned():
    with torch.device("meta"):
        layout = FlatLayout.of(MMDiT(MmditConfig(**SMALL)).double_blocks[0])
    flat = torch.zeros(layout.size)
    for view in layout.views(flat).values():
        assert view.storage_offset() % 16 == 0
        view += 1
    assert flat.max() == 1
    assert int(flat.sum()) == sum(torch.Size(shape).numel() for _, shape, _ in layout.tensors)
