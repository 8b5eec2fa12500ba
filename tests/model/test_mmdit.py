"""The transformer with its tokens widened in parts, against all of them at once."""

from typing import Any

import pytest
import torch

from opensora_launch.model import block_parts, load_mmdit
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.weights import random_tensors
from opensora_launch.schema.config import MmditConfig

SMALL: dict[str, Any] = {
    "in_channels": 4,
    "vec_in_dim": 6,
    "context_in_dim": 8,
    "hidden_size": 24,
    "num_heads": 3,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [2, 2, 4],
}


def inputs(rows: int, video: int, text: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    ids = torch.arange(video, dtype=torch.float32)[None, :, None].expand(rows, -1, 3)
    return {
        "img": torch.randn(rows, video, 4, generator=rng),
        "img_ids": ids,
        "txt": torch.randn(rows, text, 8, generator=rng),
        "txt_ids": torch.zeros(rows, text, 3),
        "timesteps": torch.rand(rows, generator=rng),
        "y_vec": torch.randn(rows, 6, generator=rng),
        "cond": torch.randn(rows, video, 8, generator=rng),
    }


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("rows", "video", "text"), [(1, 23, 5), (3, 16, 7), (1, 9, 0), (2, 0, 4)])
def test_tokens_in_parts_are_the_same(
    fused: bool, rows: int, video: int, text: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL | {"fused_qkv": fused, "use_liger_rope": not fused}
    with torch.device("meta"):
        empty = MMDiT(MmditConfig(**config))
    cpu = torch.device("cpu")
    model = load_mmdit(config, random_tensors(empty, seed=0, dtype=torch.float64, device=cpu))
    given = inputs(rows, video, text)
    want = model(**given)
    assert want.shape == (rows, video, 4)
    for at_once in (1, 6, rows * 8):
        monkeypatch.setattr(block_parts, "TOKENS_AT_ONCE", at_once)
        torch.testing.assert_close(model(**given), want, atol=1e-12, rtol=1e-12)
