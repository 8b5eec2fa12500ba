"""Small parts of the diffusion transformer: embeddings of time and position, norms, modulation.

Shapes, here and in every file of model/:
    B guidance rows   S tokens   C channels (hidden_size)   N heads   D head size
    A position axes (time, height, width)
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.schema.model_constants import TIME_CHANNELS

_NORM_EPS = 1e-6


def timestep_embedding(t: Float[Tensor, "B"], channels: int = TIME_CHANNELS) -> Float[Tensor, "B C"]:
    """Compute cos and sin of 1000 t at geometric frequencies, in fp32 whatever the dtype of the model.

    t in [0, 1]. The reference's compiled function does not round 1000 t to bf16 either; an eager bf16 function
    would, and the error would exceed 1 (opensora/models/mmdit/layers.py, timestep_embedding).
    """
    half = channels // 2
    freqs = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    args = 1000.0 * t.float()[:, None] * freqs
    return torch.cat([args.cos(), args.sin()], dim=-1)


def rope_angles(
    ids: Float[Tensor, "B S A"], axes_dim: list[int], theta: int, dtype: torch.dtype
) -> Float[Tensor, "B S half"]:
    """Compute the rotation angles of every token: position * theta^(-2k/d) for k < d/2, one axis after another."""
    parts = []
    for axis, dim in enumerate(axes_dim):
        freqs = theta ** -(torch.arange(0, dim, 2, dtype=dtype, device=ids.device) / dim)
        parts.append(ids[..., axis, None].to(dtype) * freqs)
    return torch.cat(parts, dim=-1)


class Rotary(nn.Module):
    """Make the cos and sin tables of the tokens' positions, and rotate q and k by them.

    With rotate_half, channel d is paired with d + D/2 and angles are fp32 (the released weights); otherwise channels
    2k and 2k + 1 are pairs and the angles are fp64 (Flux).
    """

    def __init__(self, axes_dim: list[int], theta: int, rotate_half: bool) -> None:
        super().__init__()
        self.axes_dim, self.theta, self.rotate_half = axes_dim, theta, rotate_half

    def forward(self, ids: Float[Tensor, "R S A"]) -> tuple[Float[Tensor, "R S 1 D"], Float[Tensor, "R S 1 D"]]:
        """Return cos and sin of each channel's angle; sin is negative for the first channel of a pair."""
        angles = rope_angles(ids, self.axes_dim, self.theta, torch.float32 if self.rotate_half else torch.float64)
        cos, sin = angles.cos().float(), angles.sin().float()
        dim = -2 if self.rotate_half else -1
        both = torch.stack([cos, cos], dim), torch.stack([-sin, sin], dim)
        return both[0].flatten(-2).unsqueeze(2), both[1].flatten(-2).unsqueeze(2)

    def rotate(
        self, x: Float[Tensor, "B S N D"], table: Sequence[Float[Tensor, "R S 1 D"]]
    ) -> Float[Tensor, "B S N D"]:
        """Return x cos + its partners sin, in fp32. R is 1 if all rows have the same positions, else B."""
        cos, sin = table
        partners = x.roll(x.shape[-1] // 2, -1) if self.rotate_half else x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return (x * cos).addcmul_(partners, sin)


class RMSNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead D"]:
        return F.rms_norm(x, (x.shape[-1],), eps=_NORM_EPS) * self.scale  # rounds twice, like the reference


class QKNorm(nn.Module):
    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(head_dim)
        self.key_norm = RMSNorm(head_dim)


class MLPEmbedder(nn.Module):
    def __init__(self, in_dim: int, channels: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, channels)
        self.out_layer = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "B in_dim"]) -> Float[Tensor, "B C"]:
        out: Tensor = self.out_layer(F.silu(self.in_layer(x)))
        return out


def layer_norm(x: Float[Tensor, "B S C"]) -> Float[Tensor, "B S C"]:
    return F.layer_norm(x, (x.shape[-1],), eps=_NORM_EPS)


def modulate(
    x: Float[Tensor, "B S C"], shift: Float[Tensor, "B 1 C"], scale: Float[Tensor, "B 1 C"]
) -> Float[Tensor, "B S C"]:
    """Apply an adaptive layer norm: (1 + scale) * LN(x) + shift."""
    return torch.addcmul(shift, 1 + scale, layer_norm(x))


class Modulation(nn.Module):
    """Turn each row's conditioning vector into `parts` vectors (shift, scale, gate, ...)."""

    def __init__(self, channels: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.lin = nn.Linear(channels, parts * channels)

    def forward(self, vec: Float[Tensor, "B C"]) -> tuple[Tensor, ...]:
        return tuple(self.lin(F.silu(vec))[:, None].chunk(self.parts, dim=-1))


class LastLayer(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 2 * channels))

    def forward(self, x: Float[Tensor, "B S C"], vec: Float[Tensor, "B C"]) -> Float[Tensor, "B S out"]:
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(x, shift, scale))
        return out
