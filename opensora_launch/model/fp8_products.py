"""Products of the transformer's blocks in float8_e4m3: approximate, and off by default (`numerics.fp8_products`).

Both factors are rounded, each row with a scale of its own: a token of the input, an output channel of the weight. So a
token's result does not depend on which other tokens a rank has. Weights are kept in the run's precision and rounded
where they are used, so it does not matter where they come from.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from opensora_launch.model.layers import Modulation
from opensora_launch.schema.model_constants import FP8_LARGEST, FP8_MULTIPLE

LEAST = 1e-12  # of a row's largest number: a row of zeros has a scale too
CAPABILITY = (8, 9)  # of the first GPUs with products in fp8


def fp8_rows(x: Float[Tensor, "rows K"]) -> tuple[Shaped[Tensor, "rows K"], Float[Tensor, "rows 1"]]:
    """Return the rows in float8_e4m3fn and their scales: divided by its scale, a row's largest number becomes 448."""
    wide = torch.promote_types(x.dtype, torch.float32)
    most = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True, dtype=wide)
    scales = most.clamp(min=LEAST) / FP8_LARGEST
    return (x / scales).to(torch.float8_e4m3fn), scales


def fp8_product(
    x: Float[Tensor, "*lead K"], weight: Float[Tensor, "N K"], bias: Float[Tensor, "N"] | None
) -> Float[Tensor, "*lead N"]:
    """Compute x weight^T + bias from factors in fp8, added up in fp32 and rounded to the type of x.

    GPUs compute in fp8. CPUs compute the same from the rounded factors in fp32, or in fp64 if x is.
    """
    tokens, token_scales = fp8_rows(x.flatten(0, -2))
    channels, channel_scales = fp8_rows(weight)
    out: Tensor
    if x.is_cuda:
        out = torch._scaled_mm(
            tokens, channels.t(), scale_a=token_scales, scale_b=channel_scales.t(), bias=bias, out_dtype=x.dtype,
            use_fast_accum=True,
        )  # fmt: skip
    else:
        wide = token_scales.dtype
        out = F.linear(tokens.to(wide), channels.to(wide)) * token_scales * channel_scales.t()
        out = (out if bias is None else out + bias).to(x.dtype)
    return out.view(*x.shape[:-1], weight.shape[0])


class Fp8Linear(nn.Module):
    """A linear layer with the parameters of another one that computes in fp8."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Float[Tensor, "*lead K"]) -> Float[Tensor, "*lead N"]:
        return fp8_product(x, self.weight, self.bias)


def use_fp8_products(blocks: Sequence[nn.Module]) -> None:
    """Let blocks compute their large products in fp8. The first and the last block and modulations stay as they are.

    blocks: all of a transformer, in the order of use, with whole weights.
    """
    for block in blocks[1:-1]:
        modulations = tuple(name for name, part in block.named_modules() if isinstance(part, Modulation))
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear) and not name.startswith(modulations):
                block.set_submodule(name, Fp8Linear(layer))


def why_no_fp8(device: torch.device) -> str:
    """Say why this device cannot compute products in fp8, or "". A small product is tried on a GPU."""
    if device.type != "cuda":
        return ""
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return f"has a GPU of sm{capability[0]}{capability[1]}, and products in fp8 need sm89 or newer"
    factor = torch.ones(FP8_MULTIPLE, FP8_MULTIPLE, dtype=torch.bfloat16, device=device)
    try:
        fp8_product(factor, factor, factor[0]).sum().item()
    except RuntimeError as error:
        return f"has a torch without products in fp8 for its GPU ({str(error).splitlines()[0]})"
    return ""
