"""The sharded transformer equals the whole one: every public geometry, any number of ranks, rows over cfg."""

import json
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from opensora_launch.model import block_parts, load_mmdit
from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.weights import random_tensors
from opensora_launch.parallel.collectives import broadcast
from opensora_launch.parallel.mesh import Groups, build_meshes
from opensora_launch.parallel.sequence_attention import sharded_attention
from opensora_launch.parallel.sharded_model import RowInputs, ShardedModel
from opensora_launch.parallel.tile_spreading import spread_tiles
from opensora_launch.plan.layout import Layout, LayoutFacts, Rules, layouts_by_rows
from opensora_launch.plan.placement import Placement
from opensora_launch.sampling.latents import position_ids
from opensora_launch.schema.config import Engine, LayoutConfig, MmditConfig
from opensora_launch.schema.tile_shares import deal_tiles
from opensora_launch.schema.tiles import Tile
from tests.ranks import run_ranks

SP_ROWS = json.loads((Path(__file__).parent.parent / "reference/sp_geometry.json").read_text())["rows"]
CPU = torch.device("cpu")
HEADS = 3
RULES = Rules(Engine.native, HEADS, 96, Placement())
SMALL: dict[str, Any] = {
    "in_channels": 4,
    "vec_in_dim": 6,
    "context_in_dim": 8,
    "hidden_size": 24,
    "num_heads": HEADS,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [2, 2, 4],
    "patch_size": 2,
}


def small_model(dtype: torch.dtype) -> MMDiT:
    with torch.device("meta"):
        empty = MMDiT(MmditConfig(**SMALL))
    return load_mmdit(SMALL, random_tensors(empty, seed=0, dtype=dtype, device=CPU))


def rows_of(count: int, text: int, video: int, dtype: torch.dtype) -> tuple[torch.Tensor, list[RowInputs]]:
    rng = torch.Generator().manual_seed(video)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=dtype)

    latents = draw(1, video, 4)
    rows = [RowInputs(0, 0.5, draw(text, 8), draw(6), draw(video, 8), 0.0) for _ in range(count)]
    return latents, rows


def unrecorded(axis, ranks, nbytes):
    return nullcontext()


def compare(cases: list[tuple[int, int, int]], fixed: dict[str, int], dtype: torch.dtype) -> list[float]:
    """Largest distance of sharded and whole, for cases of (rows, text tokens, video tokens)."""
    world, rank = dist.get_world_size(), dist.get_rank()
    model, alone = small_model(dtype), Layout(dp=world)
    kernel = choose_kernel("cpu_flash", device=CPU, dtype=dtype, head_dim=8).call
    chosen = {}
    for rows, text, video in cases:
        facts = LayoutFacts(world, world, 1, rows, text + video, RULES)
        chosen[rows, text, video] = layouts_by_rows(facts, LayoutConfig(**fixed))[-1][1]
    meshes = build_meshes([*dict.fromkeys(chosen.values()), alone], rank, Groups(timedelta(seconds=60)), unrecorded)
    distances = []
    for (rows, text, video), layout in chosen.items():
        latents, inputs = rows_of(rows, text, video, dtype)
        ids = position_ids(1, 1, video, CPU)
        got = ShardedModel(model.forward, kernel, {rows: meshes[layout]}).predict(latents, ids, inputs)
        want = ShardedModel(model.forward, kernel, {rows: meshes[alone]}).predict(latents, ids, inputs)
        distances.append(float((got - want).abs().max()))
    return distances


def scaled(ranks: int) -> list[tuple[int, int, int]]:
    """All 90 geometries with fewer tokens: the remainders of text and video modulo the ranks are kept."""
    small = {(row["txt_tokens"] % ranks + ranks, row["img_tokens"] % ranks + 2 * ranks) for row in SP_ROWS}
    return [(1 + number % 2, text, video) for number, (text, video) in enumerate(sorted(small))]


@pytest.mark.parametrize("fixed", [{}, {"ulysses": 1, "cfg": 1}], ids=["as planned", "ring"])
@pytest.mark.parametrize("ranks", [2, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 5, 6, 7, 8))])
def test_all_ninety_geometries_run(ranks, fixed, tmp_path):
    for distances in run_ranks(ranks, tmp_path, compare, scaled(ranks), fixed, torch.float64):
        assert max(distances) < 1e-10


@pytest.mark.slow
def test_a_geometry_at_its_true_token_count(tmp_path):
    """256px 16:9, 129 frames: 512 + 8316 tokens on 3 ranks, where the reference asserts."""
    for distances in run_ranks(3, tmp_path, compare, [(1, 512, 8316)], {"cfg": 1}, torch.float32, timeout=100.0):
        assert max(distances) < 1e-4


@pytest.mark.parametrize(
    ("ranks", "fixed", "rows"),
    [(2, {"cfg": 2}, 3), (2, {"cfg": 2}, 1), (3, {"cfg": 3}, 2), (4, {"cfg": 2, "ring": 2}, 3)],
    ids=["3 rows on cfg 2", "1 row on cfg 2", "2 rows on cfg 3", "3 rows on cfg 2 x ring 2"],
)
def test_rows_need_not_divide_the_cfg_axis(ranks, fixed, rows, tmp_path):
    for distances in run_ranks(ranks, tmp_path, compare, [(rows, 5, 23)], fixed, torch.float64):
        assert max(distances) < 1e-10


class Calls(list[tuple[str, int]]):
    """The exchanges of an axis as they are recorded: name, bytes."""

    def __call__(self, axis: str, ranks: tuple[int, ...], nbytes: int) -> Any:
        self.append((axis, nbytes))
        return nullcontext()


def overlapped_and_not(layout: Layout, rows: int) -> list[tuple[torch.Tensor, Calls]]:
    """The prediction with Ulysses' exchange all at once, and in spans and groups of heads."""
    vars(block_parts)["TOKENS_AT_ONCE"] = 5
    model, calls = small_model(torch.float32), Calls()
    kernel = choose_kernel("cpu_flash", device=CPU, dtype=torch.float32, head_dim=8).call
    mesh = build_meshes([layout], dist.get_rank(), Groups(timedelta(seconds=60)), calls)[layout]
    latents, inputs = rows_of(rows, 7, 41, torch.float32)
    made = []
    for overlap in (False, True):
        calls.clear()
        attention = partial(sharded_attention, overlap=overlap)
        sharded = ShardedModel(model.forward, kernel, {rows: mesh}, attention=attention)
        made.append((sharded.predict(latents, position_ids(1, 1, 41, CPU), inputs), Calls(calls)))
    return made


@pytest.mark.parametrize(
    ("layout", "rows"),
    [(Layout(ulysses=2), 1), (Layout(ulysses=3), 2), (Layout(ring=2, ulysses=2), 1), (Layout(cfg=2, ulysses=2), 3)],
    ids=str,
)
def test_an_exchange_that_overlaps_gives_the_same_bits(layout, rows, tmp_path):
    """Of uneven spans: the text is on the first rank, 48 tokens in chunks of at most 5. As many bytes are sent."""
    for (plain, plain_calls), (hidden, hidden_calls) in run_ranks(
        layout.ranks, tmp_path, overlapped_and_not, layout, rows
    ):
        assert torch.equal(plain, hidden)
        assert plain_calls == hidden_calls
        assert any(axis == "ulysses" and nbytes for axis, nbytes in plain_calls)


def tile(cost: int) -> Tile:
    return Tile((0, 0, 0), (0, 1), (0, 1), (0, 1), (1, 1, cost))


def tiles_on_rank() -> list[list[float]] | None:
    layout = Layout(cfg=dist.get_world_size())
    axis = build_meshes([layout], dist.get_rank(), Groups(timedelta(seconds=30)), unrecorded)[layout].video
    run = spread_tiles(axis)
    outputs = run([tile(n) for n in (3, 1, 4, 1, 5)], lambda job: torch.full((1, *job.out_shape), job.out_shape[2]))
    made = None if outputs is None else [t.flatten().tolist() for t in outputs]
    shared = broadcast(axis, torch.tensor([7.0, axis.index]) if axis.index == 0 else None, CPU)
    assert shared.tolist() == [7.0, 0.0]
    return made


def test_tiles_come_back_in_order_on_the_first_rank(tmp_path):
    first, *others = run_ranks(3, tmp_path, tiles_on_rank)
    assert first == [[3] * 3, [1], [4] * 4, [1], [5] * 5]
    assert others == [None, None]


def test_tiles_are_dealt_by_their_cost():
    assert deal_tiles([tile(n) for n in (9, 4, 5, 1, 1)], 2).hands == ((0, 3), (1, 2, 4))
    assert deal_tiles([tile(1)], 3).hands == ((0,), (), ())
