"""Peaks of live bytes of real forwards on one rank of many, as JSON. A process of its own: shape checks hold tensors.

    python tests/plan/peaks.py '[{"rows": 1, "dtype": "bfloat16", "layout": {...}, "mlp_ratio": 4.0}]'
"""

import json
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from memory import LiveBytes

from opensora_launch.config import MmditConfig, VaeConfig
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.parallel.attention import sharded_attention
from opensora_launch.parallel.mesh import build_meshes
from opensora_launch.plan.layout import Layout

TOKENS, TEXT = 2048, 64  # of all ranks; the first rank holds all of the text


def kernel(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What a fused kernel returns, with no memory of its own."""
    return torch.empty_like(q), torch.empty(q.shape[0], q.shape[2], q.shape[1], device=q.device)


def forward_peak(case: dict[str, Any]) -> int:
    cfg = MmditConfig(
        hidden_size=192, num_heads=24, depth=1, depth_single_blocks=1, axes_dim=[4, 2, 2], mlp_ratio=case["mlp_ratio"]
    )
    layout, dtype, rows = Layout(**case["layout"]), getattr(torch, case["dtype"]), case["rows"]
    mesh = build_meshes([layout], 0, timedelta(seconds=60), lambda *_: nullcontext())[layout]
    own = -(-TOKENS // layout.sequence)
    text, video = min(TEXT, own), max(0, own - TEXT)
    model = MMDiT(cfg).to(dtype)
    inputs = {
        "img": torch.zeros(rows, video, cfg.in_channels),
        "img_ids": torch.zeros(rows, video, 3),
        "txt": torch.zeros(rows, text, cfg.context_in_dim, dtype=dtype),
        "txt_ids": torch.zeros(rows, text, 3),
        "timesteps": torch.zeros(rows),
        "y_vec": torch.zeros(rows, cfg.vec_in_dim, dtype=dtype),
        "cond": torch.zeros(rows, video, cfg.in_channels + 4, dtype=dtype),
    }
    with torch.no_grad(), LiveBytes() as live:
        model(**inputs, attend=sharded_attention(mesh, TOKENS, kernel))
    return live.peak


def decode_peak(side: int, frames: int) -> int:
    with torch.device("meta"):
        vae, latent = CausalVae(VaeConfig()).bfloat16(), torch.empty(1, 16, frames, side, side, dtype=torch.bfloat16)
    with torch.no_grad(), LiveBytes() as live:
        vae.decode(latent)
    return live.peak


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = json.loads(sys.argv[1])
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    print(json.dumps({"forward": [forward_peak(case) for case in cases], "decode": decode_peak(32, 33)}))
