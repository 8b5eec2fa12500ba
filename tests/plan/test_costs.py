"""Compare FLOPs with torch's counter on the real modules, weights with their shapes, and check published numbers."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.shapes import mmdit_shapes
from opensora_launch.plan.costs import (
    block_weight_bytes,
    row_traffic,
    row_work,
    tensor_parallel_bytes,
    weight_bytes,
    weight_count,
)
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.memory import blocks_bytes
from opensora_launch.plan.networks import FLUX, NETWORKS, OPEN_SORA_2, TokenGrid, network_of, token_grid
from opensora_launch.schema.config import MmditConfig, ModelConfig, TextConfig

LARGE, SMALL = TokenGrid(33, 2304, 512), TokenGrid(33, 252, 512)
TINY = MmditConfig(
    in_channels=16, vec_in_dim=24, context_in_dim=32, hidden_size=96, num_heads=6, depth=2, depth_single_blocks=3,
    axes_dim=[4, 6, 6],
)  # fmt: skip


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention as plain products, which the counter knows on every device."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT) @ v).transpose(1, 2)


def counted(cfg: MmditConfig, grid: TokenGrid) -> float:
    """Count the FLOPs of one row of the real module, on the meta device."""
    with torch.device("meta"):
        model = MMDiT(cfg)
        inputs = {
            "img": torch.empty(1, grid.video_tokens, cfg.in_channels),
            "img_ids": torch.empty(1, grid.video_tokens, 3),
            "txt": torch.empty(1, grid.text_tokens, cfg.context_in_dim),
            "txt_ids": torch.empty(1, grid.text_tokens, 3),
            "timesteps": torch.empty(1),
            "y_vec": torch.empty(1, cfg.vec_in_dim),
            "guidance": torch.empty(1),
            "cond": torch.empty(1, grid.video_tokens, cfg.in_channels + cfg.patch_size**2),
        }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, attend=attend)
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    ("cfg", "grid"),
    [
        pytest.param(MmditConfig(), LARGE, marks=pytest.mark.slow),
        (MmditConfig(), SMALL),
        (MmditConfig(in_channels=128, patch_size=1), SMALL),  # of the Video DC-AE
        (MmditConfig(), TokenGrid(1, 256, 512)),
        (FLUX.mmdit, TokenGrid(1, 2304, 512)),
        (MmditConfig(fused_qkv=True, depth=3, depth_single_blocks=5, mlp_ratio=3.0), TokenGrid(9, 100, 64)),
        (TINY, TokenGrid(5, 24, 16)),
    ],
)
def test_flops_are_what_torch_counts(cfg: MmditConfig, grid: TokenGrid) -> None:
    assert row_work(network_of(ModelConfig(mmdit=cfg, text=TextConfig(grid.text_tokens))), grid).flops == pytest.approx(
        counted(cfg, grid), rel=0.01
    )


def test_the_numbers_of_open_sora() -> None:
    large, small = row_work(OPEN_SORA_2, LARGE), row_work(OPEN_SORA_2, SMALL)
    assert large.flops == pytest.approx(5.09e15, rel=1e-3)
    assert large.attention_share == pytest.approx(0.806, abs=1e-3)
    assert small.flops == pytest.approx(1.69e14, rel=5e-3)
    assert small.attention_share == pytest.approx(0.324, abs=1e-3)
    assert weight_count(OPEN_SORA_2) == 11_891_390_528
    assert weight_bytes(OPEN_SORA_2) / 2**30 == pytest.approx(22.149, abs=1e-3)
    assert weight_count(NETWORKS["open_sora_v2_dc_ae"]) == 11_891_971_200
    assert token_grid(OPEN_SORA_2, 1024, 576, 129) == LARGE


def test_the_numbers_of_flux() -> None:
    """The public file has 780 tensors."""
    net = network_of(FLUX)
    assert weight_count(net) == 11_901_408_320
    assert weight_bytes(net) / 2**30 == pytest.approx(22.17, abs=0.01)
    assert len(mmdit_shapes(FLUX.mmdit)) == 780
    assert replace(net, steps=28) == NETWORKS["flux1_dev"]


@pytest.mark.parametrize("cfg", [MmditConfig(), TINY, FLUX.mmdit])
def test_weights_are_those_of_the_modules(cfg: MmditConfig) -> None:
    shapes = mmdit_shapes(cfg)
    net = network_of(ModelConfig(mmdit=cfg, text=TextConfig(16)))
    assert weight_count(net) == sum(torch.Size(shape).numel() for shape in shapes.values())
    blocks: dict[str, int] = {}
    for name, shape in shapes.items():
        if "_blocks." in name:
            block = ".".join(name.split(".")[:2])
            blocks[block] = blocks.get(block, 0) + torch.Size(shape).numel()
    assert block_weight_bytes(net) == pytest.approx(2 * max(blocks.values()), rel=0.01)
    assert blocks_bytes(net, 2) == pytest.approx(2 * sum(blocks.values()), rel=0.01)


def test_traffic_of_a_row_on_eight_gpus() -> None:
    assert row_traffic(OPEN_SORA_2, LARGE, Layout(ulysses=8)).ulysses_bytes == pytest.approx(11.7e9, rel=5e-3)
    assert row_traffic(OPEN_SORA_2, LARGE, Layout(ring=8)).ring_bytes == pytest.approx(46.9e9, rel=1e-3)
    assert tensor_parallel_bytes(OPEN_SORA_2, LARGE, 8) == pytest.approx(62.5e9, rel=1e-3)
    both = row_traffic(OPEN_SORA_2, LARGE, Layout(ring=2, ulysses=4))
    assert both.ulysses_bytes == pytest.approx(4 * 57 * 76544 / 8 * 3072 * 2 * 3 / 4)
    assert both.ring_bytes == pytest.approx(2 * 57 * 76544 / 2 * 3072 / 4 * 2)
    assert row_traffic(OPEN_SORA_2, LARGE, Layout(cfg=8)) == row_traffic(OPEN_SORA_2, LARGE, Layout())


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"mochi_1"}))  # its text stream is not in the blocks
def test_published_parameters_are_near_the_blocks(name: str) -> None:
    net = NETWORKS[name]
    assert weight_count(replace(net, parameters=None)) == pytest.approx(weight_count(net), rel=0.3)


def test_wan_and_hunyuan_tokens() -> None:
    assert token_grid(NETWORKS["wan2.2_a14b"], 1280, 720, 81).video_tokens == 75_600
    assert token_grid(NETWORKS["hunyuan_video"], 1280, 720, 129).video_tokens == 118_800
    assert token_grid(NETWORKS["wan2.2_ti2v_5b"], 1280, 704, 121).video_tokens == 27_280
    assert token_grid(NETWORKS["flux1_dev"], 1024, 1024, 1).video_tokens == 4096


def test_a_cross_attention_block_by_hand() -> None:
    net = NETWORKS["wan2.1_14b"]
    work = row_work(net, TokenGrid(1, 1000, 512))
    assert work.attention_flops == 40 * 4 * 5120 * (1000**2 + 1000 * 512)
    products = 40 * (1000 * 2 * (4 * 5120**2 + 2 * 5120 * 13824) + (1000 + 512) * 4 * 5120**2)
    assert work.matmul_flops == pytest.approx(products, rel=0.005)
