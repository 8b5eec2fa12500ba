"""Weights that are gathered or copied block by block compute the same bits as weights that stay."""

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora_launch.model import load_mmdit
from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.weights import random_tensors
from opensora_launch.parallel.mesh import Axis, Groups, Mesh, build_meshes
from opensora_launch.parallel.packing import Packing
from opensora_launch.parallel.sharded_model import RowInputs, ShardedModel
from opensora_launch.parallel.streaming import Placed, StreamedBlocks
from opensora_launch.plan.layout import LayoutFacts, Rules, layouts_by_rows
from opensora_launch.plan.placement import Placement
from opensora_launch.sampling.latents import position_ids
from opensora_launch.schema.config import Engine, LayoutConfig, MmditConfig
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


def streamed(module: MMDiT, axis: Axis, *, fp8: bool, resident: Sequence[int]) -> tuple[StreamedBlocks, int]:
    """The module with its blocks' weights in shares over the axis, and the elements that were read for it."""
    placed, read = [], 0
    for index, block in enumerate(blocks_of(module)):
        packing, state = Packing.of(block, fp8=fp8), block.state_dict()
        stays = index in resident
        ranks, place = (1, 0) if stays else (axis.size, axis.index)
        share = torch.empty(packing.share(ranks), dtype=torch.uint8)

        def elements(name: str, first: int, last: int, state: dict[str, Tensor] = state) -> Tensor:
            return state[name].reshape(-1)[first:last]

        read += packing.read_share(place, ranks, elements, share)
        placed.append(Placed(packing, share, stays))
    return StreamedBlocks(blocks_of(module), placed, axis, CPU), read


def inputs(rows: int) -> tuple[Tensor, Tensor, list[RowInputs]]:
    rng = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 23, 4, generator=rng)
    made = [
        RowInputs(0, 0.5, torch.randn(5, 8, generator=rng), torch.randn(6, generator=rng), torch.zeros(23, 8), 0.0)
        for _ in range(rows)
    ]
    return latents, position_ids(1, 1, 23, CPU), made


def resident_bytes(store: StreamedBlocks) -> int:
    """Bytes of weights on this rank's device: its buffers, and its shares if they are there."""
    held = [*store._buffers, *store._staging, *([] if store._room is None else [store._room])]
    held += [x.share for x in store.placed if x.share.device.type == store._device.type]
    return sum(x.nbytes for x in held)


def both_ways(
    fixed: dict[str, int], rows: int, fp8: bool = False, resident: Sequence[int] = (), at_once: int = 0
) -> tuple[list[Tensor], list[Tensor], int, int]:
    """What whole and streamed weights predict, twice; elements read here; bytes resident here while computing."""
    world = dist.get_world_size()
    facts = LayoutFacts(world, world, 1, rows, 28, Rules(Engine.native, SMALL["num_heads"], 96, Placement()))
    layout = layouts_by_rows(facts, LayoutConfig(**fixed))[-1][1]
    mesh: Mesh = build_meshes([layout], dist.get_rank(), Groups(timedelta(seconds=30)), unrecorded)[layout]
    kernel = choose_kernel("cpu_flash", device=CPU, dtype=torch.float32, head_dim=8).call
    whole = ShardedModel(model(), kernel, {rows: mesh}, rows_at_once=at_once)
    want = [whole.predict(*inputs(rows)) for _ in range(2)]
    module = model()
    store, read = streamed(module, mesh.video, fp8=fp8, resident=resident)
    parts = ShardedModel(module, kernel, {rows: mesh}, store.pass_through, at_once)
    got = [parts.predict(*inputs(rows)) for _ in range(2)]  # the second begins with what the first sent for
    held = resident_bytes(store)
    store.release()
    assert resident_bytes(store) == sum(x.share.numel() for x in store.placed)
    got.append(parts.predict(*inputs(rows)))  # buffers are made anew
    store.release()
    return got, want, read, held


@pytest.mark.parametrize(
    ("ranks", "fixed", "rows"),
    [(1, {}, 2), (2, {"ulysses": 2}, 1), (3, {"ring": 3}, 2), (4, {"cfg": 2, "ulysses": 2}, 2), (2, {"cfg": 2}, 1)],
    ids=["1 rank", "ulysses 2", "ring 3", "cfg 2 x ulysses 2", "a rank without a row"],
)
def test_sharded_equals_replicated_bit_for_bit(ranks, fixed, rows, tmp_path):
    results = run_ranks(ranks, tmp_path, both_ways, fixed, rows)
    for got, want, _, _ in results:
        assert [torch.equal(x, want[0]) for x in (*got, want[1])] == [True] * 4
    numbers = sum(p.numel() for block in blocks_of(model()) for p in block.parameters())
    assert sum(read for _, _, read, _ in results) == numbers, "every element is read once, by one rank"
    packings = [Packing.of(block) for block in blocks_of(model())]
    want_held = 2 * ranks * max(x.share(ranks) for x in packings) + sum(x.share(ranks) for x in packings)
    assert {held for *_, held in results} == {want_held}
    assert want_held < sum(x.size for x in packings) * (1 / ranks + 0.9)


@pytest.mark.parametrize("resident", [(0,), (1, 3), (0, 1, 2, 3), (0, 1, 2, 3, 4)])
def test_blocks_that_stay_change_nothing(resident, tmp_path):
    for got, want, _, held in run_ranks(2, tmp_path, both_ways, {"ulysses": 2}, 1, False, resident):
        assert [torch.equal(x, want[0]) for x in got] == [True] * 3
        packings = [Packing.of(block) for block in blocks_of(model())]
        away = [x for i, x in enumerate(packings) if i not in resident]
        shares = sum(x.share(2) for x in away) + sum(packings[i].share(1) for i in resident)
        assert held == shares + (4 * max(x.share(2) for x in away) if away else 0)


@pytest.mark.parametrize(("fixed", "rows"), [({"ulysses": 2}, 3), ({"cfg": 2}, 3), ({"cfg": 2}, 1)])
def test_a_row_at_a_time_is_the_same_but_for_rounding(fixed, rows, tmp_path):
    """On cfg 2, three rows are two and one: the second rank takes part in a forward without a row of its own."""
    together = run_ranks(2, tmp_path, both_ways, fixed, rows)[0][1][0]
    for got, want, _, _ in run_ranks(2, tmp_path, both_ways, fixed, rows, False, (), 1):
        assert [torch.equal(x, want[0]) for x in got] == [True] * 3
        torch.testing.assert_close(want[0], together, atol=1e-5, rtol=1e-5)


def test_fp8_is_the_same_on_any_ranks_and_near_the_weights(tmp_path):
    alone = run_ranks(1, tmp_path, both_ways, {}, 2, True)[0]
    resident = run_ranks(1, tmp_path, both_ways, {}, 2, True, (0, 2))[0]
    assert torch.equal(alone[0][0], resident[0][0])
    for got, want, _, _ in run_ranks(3, tmp_path, both_ways, {"ring": 3}, 2, True):
        torch.testing.assert_close(got[0], alone[0][0], atol=1e-5, rtol=1e-5)
        assert torch.equal(got[0], got[2])
        error = (got[0] - want[0]).norm() / want[0].norm()
        assert 1e-3 < error < 0.1
