"""Compare compiled blocks with eager ones, and print what the compiler did as JSON.

It runs in a separate process, because the tests' type checks cannot be compiled. The only argument is JSON: `dtype`,
and `config` over that of the model.
"""

import json
import sys
from typing import Any

import torch
from torch._dynamo.utils import counters

from opensora_launch.model import block_parts
from opensora_launch.model.block_parts import EAGER, Parts
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.schema.config import MmditConfig

AT_ONCE = 64
# Rows, tokens of the video, and of the text. The first two compile: one row and several rows.
FIRST = ((1, 150, 20), (2, 20, 10))
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
    print(json.dumps(found))


def compare(exact: MMDiT, model: MMDiT, parts: Parts, *sizes: int) -> tuple[float, float]:
    """Return the errors of eager and of compiled blocks, relative to the largest number."""
    given = inputs(model.cfg, *sizes)
    want = exact(**{name: x.double() for name, x in given.items()})
    eager, compiled = (float((model(**given, parts=p).double() - want).abs().max()) for p in (EAGER, parts))
    return eager / float(want.abs().max()), compiled / float(want.abs().max())


if __name__ == "__main__":
    main()
