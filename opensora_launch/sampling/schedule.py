"""Timesteps of the rectified flow, from 1 (noise) to 0 (video)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

BASE_SHIFT, MAX_SHIFT = 1.0, 3.0
BASE_TOKENS, MAX_TOKENS = 256, 4096


def shift_alpha(tokens_per_frame: int, latent_frames: int) -> float:
    """Return how far timesteps are shifted towards noise: larger and longer videos need more steps there.

    A line through (256 tokens, 1) and (4096 tokens, 3), times the square root of the latent frames
    (opensora/utils/sampling.py, get_schedule).
    """
    slope = (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS)
    return (BASE_SHIFT + slope * (tokens_per_frame - BASE_TOKENS)) * math.sqrt(latent_frames)


def shift_timesteps(t: Float[Tensor, "steps"], alpha: float) -> Float[Tensor, "steps"]:
    """Shift t in [0, 1] to alpha t / (1 + (alpha - 1) t); alpha = 1 changes nothing. Esser et al. 2024, eq. 23."""
    return alpha * t / (1 + (alpha - 1) * t)


def timesteps(
    num_steps: int, tokens_per_frame: int, latent_frames: int, *, shift: bool, flow_shift: float | None
) -> list[float]:
    """Return num_steps + 1 descending times in [0, 1], computed in fp32. `flow_shift` replaces the computed alpha."""
    t = torch.linspace(1, 0, num_steps + 1)
    if shift:
        t = shift_timesteps(t, shift_alpha(tokens_per_frame, latent_frames) if flow_shift is None else flow_shift)
    times: list[float] = t.tolist()
    return times
