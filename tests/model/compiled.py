"""Compare compiled blocks with eager ones, and print what the compiler did as JSON.

It runs in a separate process, because the tests' type checks cannot be compiled. The only argument is JSON: `dtype`,
`config` over that of the model, and whether it computes in `fp8`.
"""

import json
import sys
from typing import Any

import torch
from torch._dynamo.utils import counters

from opensora_launch.model import block_parts
from opensora_launch.model.block_parts import EAGER, Parts
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.fp8_products import use_fp8_products
from opensora_launch.model.frame_norms import EAGER_NORMS
from opensora_launch.model.frame_shares import FrameShare
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.config import MmditConfig

AT_ONCE = 64
# Rows, tokens of the video, and of the text. The first two compile: one row and several rows.
FIRST = ((1, 150, 20), (2, 20, 10))
VIDEOS = ((3, 4, 5), (4, 6, 3), (3, 5, 4))
VAE = VaeConfig(latent_channels=4, norm_num_groups=4, block_out_channels=[8, 8, 16, 16], layers_per_block=1)
UNEVEN = ((1, 151, 20), (1, 149, 19), (1, 40, 2), (2, 29, 21), (3, 17, 5), (1, 150, 0))


def inputs(cfg: MmditConfig, rows: int, video: int, text: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "img": torch.randn(rows, video, cfg.in_channels, generator=rng),
        "img_ids": torch.rand(1, video, 3, generator=rng) * 30,
        "txt": torch.randn(rows, text, cfg.context_in_dim, generator=rng),
        "txt_ids": torch.zeros(1, text, 3),
        "timesteps": torch.rand(rows, generator=rng),
        "y_vec": torch.randn(rows, cfg.vec_in_dim, generator=rng),
        "cond": torch.randn(rows, video, cfg.in_channels + cfg.patch_size**2, generator=rng),
    }


@torch.no_grad()
def main() -> None:
    asked = json.loads(sys.argv[1])
    cfg = MmditConfig(
        in_channels=16, vec_in_dim=24, context_in_dim=32, hidden_size=96, num_heads=3, depth=2, depth_single_blocks=2,
        axes_dim=[8, 12, 12], **asked["config"],
    )  # fmt: skip
    torch.manual_seed(0)
    exact = MMDiT(cfg).double()
    model = MMDiT(cfg).to(getattr(torch, asked["dtype"]))
    model.load_state_dict(exact.state_dict())
    if asked["fp8"]:
        use_fp8_products([*model.double_blocks, *model.single_blocks])
    vars(block_parts)["TOKENS_AT_ONCE"] = AT_ONCE
    parts = block_parts.compiled()
    errors = [compare(exact, model, parts, *sizes) for sizes in FIRST]
    graphs = counters["stats"]["unique_graphs"]
    errors += [compare(exact, model, parts, *sizes) for sizes in UNEVEN]
    found: dict[str, Any] = {
        "errors": errors,
        "breaks": dict(counters["graph_break"]),
        "graphs": [graphs, counters["stats"]["unique_graphs"]],
    }
    found["vae_errors"] = [compare_vae(getattr(torch, asked["dtype"]), parts, *sizes) for sizes in VIDEOS]
    found |= {
        "vae_graphs": counters["stats"]["unique_graphs"] - found["graphs"][1],
        "breaks": dict(counters["graph_break"]),
    }
    print(json.dumps(found))


def compare(exact: MMDiT, model: MMDiT, parts: Parts, *sizes: int) -> tuple[float, float]:
    """Return the errors of eager and of compiled blocks, relative to the largest number."""
    given = inputs(model.cfg, *sizes)
    want = exact(**{name: x.double() for name, x in given.items()})
    eager, compiled = (float((model(**given, parts=p).double() - want).abs().max()) for p in (EAGER, parts))
    return eager / float(want.abs().max()), compiled / float(want.abs().max())


def compare_vae(dtype: torch.dtype, parts: Parts, *sizes: int) -> tuple[float, float]:
    """The same of the causal VAE, on a tile in two parts."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        exact = CausalVae(VAE).double()
        vae = CausalVae(VAE).to(dtype)
    vae.load_state_dict(exact.state_dict())
    latent = torch.randn(1, VAE.latent_channels, *sizes, dtype=torch.float64)
    share = FrameShare(((0, 1), (1, sizes[0])), ((0, 2),))
    want = exact.decode(latent, share)
    eager, compiled = (
        float((vae.decode(latent.to(dtype), share, norms).double() - want).abs().max())
        for norms in (EAGER_NORMS, parts.norms)
    )
    return eager / float(want.abs().max()), compiled / float(want.abs().max())


if __name__ == "__main__":
    main()
