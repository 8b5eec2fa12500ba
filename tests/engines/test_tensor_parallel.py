"""Weights cut over the tp axis: the same numbers as whole, uneven heads too; what a rank holds, and what it sends."""

import json
from collections import defaultdict
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from opensora_launch.engines.native import cut_transformer
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model import load_mmdit
from opensora_launch.model.cuts import CutKind, mmdit_cuts
from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.weights import random_tensors
from opensora_launch.parallel.mesh import Groups, build_meshes
from opensora_launch.parallel.sharded_model import RowInputs, ShardedModel
from opensora_launch.plan.costs import tensor_parallel_bytes, tensor_parallel_calls
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.memory import memory_of
from opensora_launch.plan.networks import TokenGrid, network_of
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.video_size import VideoSize
from opensora_launch.sampling.latents import position_ids
from opensora_launch.schema.config import Init, MmditConfig, ModelConfig, TextConfig
from tests.ranks import run_ranks

CPU, TEXT, VIDEO = torch.device("cpu"), 5, 18
SMALL: dict[str, Any] = {
    "in_channels": 4,
    "vec_in_dim": 6,
    "context_in_dim": 8,
    "hidden_size": 40,
    "num_heads": 5,
    "depth": 2,
    "depth_single_blocks": 1,
    "axes_dim": [2, 2, 4],
    "patch_size": 2,
}


def whole(config: dict[str, Any], dtype: torch.dtype) -> MMDiT:
    with torch.device("meta"):
        empty = MMDiT(MmditConfig(**config))
    return load_mmdit(config, random_tensors(empty, seed=0, dtype=dtype, device=CPU))


def on_rank(layout: Layout, rows: int, config: dict[str, Any]) -> tuple[float, dict[str, list[int]], int]:
    """Distance of the cut model from the whole one, bytes sent of each exchange by axis, and parameters held."""
    sent: dict[str, list[int]] = defaultdict(list)

    def record(axis: str, ranks: tuple[int, ...], nbytes: int) -> Any:
        sent[axis].append(nbytes)
        return nullcontext()

    alone = Layout(dp=layout.ranks)
    meshes = build_meshes([layout, alone], dist.get_rank(), Groups(timedelta(seconds=60)), record)
    model = whole(config, torch.float64)
    kernel = choose_kernel("cpu_flash", device=CPU, dtype=torch.float64, head_dim=8)
    rng = torch.Generator().manual_seed(1)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    latents = draw(1, VIDEO, 4)
    inputs = [RowInputs(0, 0.5, draw(TEXT, 8), draw(6), draw(VIDEO, 8), 0.0) for _ in range(rows)]
    ids = position_ids(2, 3, 3, CPU)
    want = ShardedModel(model.forward, kernel.call, {rows: meshes[alone]}).predict(latents, ids, inputs)
    sent.clear()
    tp, dtype = meshes[layout].tp, torch.float64
    cut = cut_transformer(model.cfg, model.state_dict().__getitem__, tp, CPU, dtype, lambda nbytes: None)
    got = ShardedModel(cut.forward, kernel.call, {rows: meshes[layout]}).predict(latents, ids, inputs)
    return float((got - want).abs().max()), dict(sent), sum(p.numel() for p in cut.parameters())


@pytest.mark.parametrize(
    ("layout", "rows", "changes"),
    [
        pytest.param(Layout(tp=2), 1, {}, id="tp2"),
        pytest.param(Layout(tp=3), 1, {"fused_qkv": True}, id="fused"),
        pytest.param(Layout(tp=2, ulysses=2), 1, {}, id="tp2 x ulysses2"),
        pytest.param(Layout(tp=5), 2, {}, id="tp5", marks=pytest.mark.slow),
        pytest.param(Layout(tp=2, ring=3), 1, {"fused_qkv": True}, id="fused x ring3", marks=pytest.mark.slow),
        pytest.param(Layout(tp=2, cfg=3), 2, {}, id="2 rows on cfg3 x tp2", marks=pytest.mark.slow),
        pytest.param(
            Layout(tp=2, cfg=2, ulysses=2), 3, {"qkv_bias": False}, id="cfg2 x ulysses2 x tp2", marks=pytest.mark.slow
        ),
    ],
)
def test_cut_equals_whole(layout, rows, changes, tmp_path):
    for distance, _, _ in run_ranks(layout.ranks, tmp_path, on_rank, layout, rows, SMALL | changes):
        assert distance < 1e-12


def test_a_rank_sends_and_holds_what_the_planner_counts(tmp_path):
    """All-reduces as counted; over them only the modulation's gathers, one token a row."""
    cfg = MmditConfig(**SMALL)
    net, rows = network_of(ModelConfig(mmdit=cfg, text=TextConfig(TEXT))), 2
    held = []
    for tp in (2, 5):
        results = run_ranks(tp, tmp_path, on_rank, Layout(tp=tp), rows, SMALL)
        counted = rows * tensor_parallel_bytes(net, TokenGrid(2, 9, TEXT), tp, element_bytes=8)
        for distance, sent, _ in results:
            assert distance < 1e-12
            assert len(sent["tp"]) == tensor_parallel_calls(net)
            largest = rows * 8 * 6 * cfg.hidden_size * (tp - 1)
            gathers = [nbytes for nbytes in sent["tp"] if nbytes <= largest / tp]
            assert len(gathers) == 2 * cfg.depth + cfg.depth_single_blocks
            assert sum(sent["tp"]) - sum(gathers) == pytest.approx(counted, rel=0.01)
        held.append([parameters for _, _, parameters in results])
    for tp, most in ((2, max(held[0])), (5, max(held[1]))):
        memory = memory_of(
            net, TokenGrid(2, 9, TEXT), VideoSize(16, 16, 5, None), (1, Layout(tp=tp)),
            gpus_per_node=tp, placement=Placement(), element_bytes=1,
        )  # fmt: skip
        assert memory.weights == pytest.approx(most, rel=0.05)  # the biases are not counted as cut


def test_every_layer_of_a_block_is_named_with_its_size():
    for fused in (False, True):
        cfg = MmditConfig(**(SMALL | {"fused_qkv": fused}))
        with torch.device("meta"):
            layers = {
                name: layer
                for name, layer in MMDiT(cfg).named_modules()
                if isinstance(layer, torch.nn.Linear) and "_blocks." in name
            }
        cuts = mmdit_cuts(cfg)
        assert cuts.keys() == layers.keys()
        for name, cut in cuts.items():
            size = layers[name].in_features if cut.kind is CutKind.inputs else layers[name].out_features
            assert sum(segment.channels for segment in cut.segments) == size


def loaded_on_rank(source: WeightSource) -> dict[str, torch.Tensor]:
    layout = Layout(tp=dist.get_world_size())
    axis = build_meshes([layout], dist.get_rank(), Groups(timedelta(seconds=30)), lambda *_: nullcontext())[layout].tp
    module = cut_transformer(source.model.mmdit, source.reader(), axis, CPU, source.dtype, lambda nbytes: None)
    return dict(module.state_dict())


def store(tensors: dict[str, torch.Tensor], path: Path, *, several: bool) -> None:
    if not several:
        save_file(tensors, path)
        return
    where = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, path.with_name(file))
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize(
    ("init", "several"),
    [(Init.random, False), (Init.checkpoint, False), (Init.checkpoint, True)],
    ids=["drawn", "a file", "files"],
)
def test_parts_make_up_the_whole(init, several, tmp_path):
    cfg = MmditConfig(**SMALL)
    with torch.device("meta"):
        empty = MMDiT(cfg)
    tensors = random_tensors(empty, seed=3, dtype=torch.float32, device=CPU)
    store(tensors, tmp_path / "weights", several=several)
    model = ModelConfig(init=init, init_seed=3, folder=str(tmp_path), mmdit_file="weights", mmdit=cfg)
    parts = run_ranks(3, tmp_path, loaded_on_rank, WeightSource(model, CPU, torch.float32))
    name = "single_blocks.0.linear2.weight"
    heads, wide = (torch.cat([p[name][:, a:b] for p, (a, b) in zip(parts, ends, strict=True)], 1) for ends in (
        [(0, 16), (0, 16), (0, 8)], [(16, 70), (16, 69), (8, 61)]))  # fmt: skip
    assert torch.equal(torch.cat([heads, wide], 1), tensors[name])
    for name in ("double_blocks.1.img_attn.q_proj.weight", "double_blocks.0.txt_mod.lin.bias"):
        assert torch.equal(torch.cat([p[name] for p in parts]), tensors[name])
    assert all(torch.equal(p["txt_in.weight"], tensors["txt_in.weight"]) for p in parts)
    bias = "double_blocks.0.img_mlp.2.bias"
    assert [bias in p for p in parts] == [True, False, False], "it would be added once a rank"
