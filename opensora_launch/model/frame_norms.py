"""What a group norm of the causal VAE does to some frames: `Norms`, eager or compiled (block_parts.py)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def moments(frame: Float[Tensor, "B C H W"], groups: int) -> Float[Tensor, "2 B groups"]:
    """Return variance and mean of each group of channels of a frame, in fp32 or wider."""
    numbers = frame.to(torch.promote_types(frame.dtype, torch.float32)).reshape(frame.shape[0], groups, -1)
    if not frame.is_cpu:
        return torch.stack(torch.var_mean(numbers, dim=2, correction=0))
    mean = numbers.mean(dim=2)  # on a CPU, torch's var_mean is much slower than these two passes
    return torch.stack([(numbers - mean[..., None]).square_().mean(dim=2), mean])


def activated(
    x: Float[Tensor, "B C T H W"], scale: Float[Tensor, "B C 1 1 1"], shift: Float[Tensor, "B C 1 1 1"]
) -> Float[Tensor, "B C T H W"]:
    """Compute silu(x * scale + shift)."""
    return F.silu(torch.addcmul(shift, x, scale).to(x.dtype), inplace=True)


@dataclass(frozen=True)
class Norms:
    """The two functions, eager or compiled."""

    moments: Callable[..., Tensor] = moments
    activated: Callable[..., Tensor] = activated


EAGER_NORMS = Norms()
