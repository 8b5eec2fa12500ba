"""Compare predicted bytes with what real forwards hold, and check the placements of the weights."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.plan.costs import block_weight_bytes, weight_bytes
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.memory import (
    GIB,
    Memory,
    activation_bytes,
    blocks_bytes,
    memory_of,
    resident_weights,
    tile_bytes,
)
from opensora_launch.plan.networks import OPEN_SORA_2, TokenGrid, network_of
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.set_aside import RESERVED_BYTES
from opensora_launch.plan.video_size import VideoSize
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.config import MmditConfig, ModelConfig, Offload, Shard, Storage, TextConfig
from opensora_launch.schema.tiles import decode_grid

ROOT = Path(__file__).parents[2]
CASES: list[dict[str, Any]] = [
    {"rows": rows, "dtype": dtype, "mlp_ratio": ratio, "layout": vars(layout), "at_once": at_once, "overlap": overlap}
    for at_once in (8192, 512, 128)
    for overlap in (False, True)
    for rows, dtype, ratio, layout in (
        (1, "bfloat16", 4.0, Layout(cfg=8)),
        (2, "bfloat16", 4.0, Layout(cfg=8)),
        (1, "bfloat16", 2.0, Layout(cfg=8)),
        (1, "float32", 4.0, Layout(cfg=8)),
        (1, "float32", 2.0, Layout(cfg=8)),
        (1, "bfloat16", 4.0, Layout(ulysses=8)),
        (2, "bfloat16", 3.0, Layout(cfg=2, ulysses=4)),
        (1, "float32", 4.0, Layout(ulysses=8)),
        (1, "bfloat16", 4.0, Layout(ring=8)),
        (1, "bfloat16", 4.0, Layout(cfg=4, ring=2)),
        (1, "bfloat16", 4.0, Layout(ring=2, ulysses=4)),
        (1, "bfloat16", 4.0, Layout(ring=4, ulysses=2)),
        (1, "float32", 4.0, Layout(ring=8)),
        (1, "float32", 4.0, Layout(ring=4, ulysses=2)),
        (1, "bfloat16", 4.0, Layout(cfg=4, tp=2)),
        (1, "bfloat16", 2.0, Layout(cfg=2, tp=4)),
        (2, "bfloat16", 4.0, Layout(tp=8)),
        (1, "float32", 2.0, Layout(cfg=4, tp=2)),
        (1, "bfloat16", 4.0, Layout(ulysses=4, tp=2)),
        (1, "bfloat16", 2.0, Layout(ulysses=2, tp=4)),
        (1, "bfloat16", 4.0, Layout(ring=4, tp=2)),
        (1, "bfloat16", 2.0, Layout(ring=2, ulysses=2, tp=2)),
    )
    if layout.ulysses > 1 or not overlap
]


PLACED: list[dict[str, Any]] = [
    {"placement": vars(placement), "ranks": ranks}
    for ranks, placement in (
        (1, Placement()),
        (4, Placement()),
        (2, Placement(Shard.node)),
        (4, Placement(Shard.node)),
        (1, Placement(Shard.none, Offload.host)),
        (1, Placement(Shard.none, Offload.host, 4)),
        (4, Placement(Shard.none, Offload.host, 9)),
        (4, Placement(Shard.node, Offload.host)),
        (4, Placement(Shard.node, Offload.host, 5)),
        (1, Placement(storage=Storage.fp8)),
        (4, Placement(Shard.node, storage=Storage.fp8)),
        (1, Placement(Shard.none, Offload.host, 4, storage=Storage.fp8)),
    )
]


@cache
def measured() -> dict[str, Any]:
    argv = [sys.executable, str(Path(__file__).parent / "peaks.py"), json.dumps({"forward": CASES, "placed": PLACED})]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "index",
    range(len(CASES)),
    ids=lambda i: f"{CASES[i]['dtype']}-{CASES[i]['layout']}-{CASES[i]['at_once']}{'-overlap' * CASES[i]['overlap']}",
)
def test_activations_are_what_a_forward_holds(index: int) -> None:
    case = CASES[index]
    cfg = MmditConfig(hidden_size=192, num_heads=24, depth=1, depth_single_blocks=1, mlp_ratio=case["mlp_ratio"])
    size = 2 if case["dtype"] == "bfloat16" else 4
    net = network_of(ModelConfig(mmdit=cfg, text=TextConfig(8)))
    grid, layout = TokenGrid(1, 2040, 8), Layout(**case["layout"])
    found = activation_bytes(net, grid, layout, case["rows"], size, case["at_once"], overlap=case["overlap"])
    assert found == pytest.approx(measured()["forward"][index], rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(PLACED)), ids=lambda i: f"{PLACED[i]['ranks']} ranks {i}")
def test_placed_weights_and_a_forward_are_what_is_held(index: int) -> None:
    """Staging buffers are excluded, because they exist only on GPUs."""
    cfg = MmditConfig(hidden_size=192, num_heads=24, depth=2, depth_single_blocks=8)
    net = network_of(ModelConfig(mmdit=cfg, text=TextConfig(8)))
    placement, ranks = Placement(**PLACED[index]["placement"]), PLACED[index]["ranks"]
    weights = resident_weights(net, Layout(ulysses=ranks), ranks, placement, 2)
    staging = 0.0
    if placement.offload is Offload.host and placement.shard is Shard.node:
        staging = 2 * block_weight_bytes(net) / ranks
    want = weights.held + weights.buffers - staging
    want += activation_bytes(net, TokenGrid(1, 2040, 8), Layout(), 1, 2, at_once=512)
    unpacked = placement.storage is Storage.fp8  # a copy of the largest weight, which is not counted
    assert want == pytest.approx(measured()["placed"][index], rel=0.06 if unpacked else 0.01)


@pytest.mark.slow
def test_a_tile_of_the_vae_is_what_decoding_holds() -> None:
    video = VideoSize(256, 256, 129, 256)
    assert tile_bytes(video, 2) == pytest.approx(measured()["decode"], rel=0.05)
    assert measured()["decode"] < 7.2 * GIB


def test_tiles_are_open_soras() -> None:
    assert VideoSize(1024, 576, 129, 256).tiles == 18
    assert VideoSize(336, 192, 129, 256).tiles == 2
    assert VideoSize(256, 256, 129, 256).tiles == 1
    assert VideoSize(768, 768, 129, 256).tiles == 16
    assert VideoSize(1024, 576, 129, None).tiles == 1


@pytest.mark.parametrize("frames", [1, 33, 65, 129, 257, 513])
@pytest.mark.parametrize("tile_frames", [None, 16, 64])
def test_tiles_are_counted_as_they_are_cut(frames: int, tile_frames: int | None) -> None:
    size, cfg = VideoSize(336, 192, frames, 256, tile_frames), VaeConfig(tile_frames=tile_frames)
    grid = decode_grid(cfg, ((frames - 1) // 4 + 1, 24, 42))
    assert grid.out_shape == (frames, 192, 336)
    assert len(grid.tiles) == size.tiles
    largest = max(tile.out_shape[0] + (tile.index[0] > 0) for tile in grid.tiles) * 192 * 256
    assert largest == size.tile_pixels


def large(layout: Layout, shard: Shard = Shard.none, offload: Offload = Offload.none, **more: Any) -> Memory:
    given: dict[str, Any] = {"gpus_per_node": 8, "element_bytes": 2} | more
    video = VideoSize(1024, 576, 129, 256)
    placement, rows = Placement(shard, offload), given.pop("rows", 2)
    return memory_of(OPEN_SORA_2, TokenGrid(33, 2304, 512), video, (rows, layout), placement=placement, **given)


def test_weights_by_placement() -> None:
    whole, blocks, two = weight_bytes(OPEN_SORA_2), blocks_bytes(OPEN_SORA_2, 2), 2 * block_weight_bytes(OPEN_SORA_2)
    layout = Layout(cfg=2, ulysses=4)
    assert large(layout).weights == whole
    assert large(layout, Shard.node).weights == pytest.approx(whole - blocks + two + blocks / 8)
    assert large(layout, Shard.node, gpus_per_node=4).weights == pytest.approx(whole - blocks + two + blocks / 4)
    assert large(layout, Shard.all, gpus_per_node=4).weights == pytest.approx(whole - blocks + two + blocks / 8)
    assert large(Layout(dp=8), Shard.node).weights == whole  # each rank has its own video
    assert large(Layout(), offload=Offload.host).weights == pytest.approx(whole - blocks + two)
    assert large(Layout(cfg=2), offload=Offload.host, gpus_per_node=2).host == pytest.approx(blocks + 2 * 3 * GIB)


def test_phases_of_one_gpu() -> None:
    memory = large(Layout(), gpus_per_node=1)
    one_row = 5.2 * 76544 * 3072 * 2  # would be twenty activations if all tokens were widened at once
    angles = 76544 * 128 * 8
    assert memory.activations == pytest.approx(2 * one_row + angles)
    assert memory.denoise > memory.weights + memory.activations + RESERVED_BYTES
    assert memory.peak == max(memory.text, memory.denoise, memory.decode)
    assert large(Layout(cfg=2), gpus_per_node=2).activations == pytest.approx(one_row + angles)


def test_divided_weights_and_t5_shrink_with_the_axis() -> None:
    whole, blocks = weight_bytes(OPEN_SORA_2), blocks_bytes(OPEN_SORA_2, 2)
    assert large(Layout(tp=4), gpus_per_node=4).weights == pytest.approx(whole - blocks * 3 / 4)
    heads = 2 * 4 * 3072**2 * (57 + 19)
    assert large(Layout(tp=5), gpus_per_node=5).weights == pytest.approx(
        whole - blocks * 4 / 5 + heads * (5 / 24 - 1 / 5)
    )
    assert large(Layout(tp=4, ulysses=2)).activations < large(Layout(tp=4), gpus_per_node=4).activations / 1.7
    halves, quarters = (large(Layout(tp=4), t5_parts=parts).text for parts in (2, 4))
    assert halves - quarters == pytest.approx((9.1 - 0.5) / 4 * 1.02 * GIB)


def test_three_cards_of_24_gib_hold_what_one_cannot() -> None:
    assert large(Layout(ring=3), Shard.node, gpus_per_node=3).denoise < 24 * GIB < large(Layout()).denoise
