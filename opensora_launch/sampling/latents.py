"""Draw noise, and pack latents into tokens.

Shapes: B videos, C latent channels, T latent frames, H x W latents, p the patch size, S = T (H/p) (W/p) tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def draw_noise(
    seeds: list[int], shape: tuple[int, int, int, int], *, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "B C T H W"]:
    """Draw each video's noise from its own generator, so that a seed gives the same video in any batch and layout.

    On the CPU it is drawn in fp32 for every dtype. A CUDA device draws other numbers for the same seed.
    """
    drawn = torch.float32 if device.type == "cpu" else dtype
    generators = (torch.Generator(device).manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randn(shape, generator=g, device=device, dtype=drawn) for g in generators]).to(dtype)


def pack(x: Float[Tensor, "B C T H W"], patch: int) -> Float[Tensor, "B S Cpp"]:
    """Pack latents into tokens: b c t (h ph) (w pw) -> b (t h w) (c ph pw)."""
    b, c, t, h, w = x.shape
    x = x.view(b, c, t, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 3, 5, 1, 4, 6).reshape(b, t * (h // patch) * (w // patch), c * patch * patch)


def unpack(x: Float[Tensor, "B S Cpp"], frames: int, height: int, width: int, patch: int) -> Float[Tensor, "B C T H W"]:
    """Undo `pack`; frames, height and width are sizes of the latents."""
    b, _, channels = x.shape
    x = x.view(b, frames, height // patch, width // patch, channels // patch**2, patch, patch)
    return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(b, channels // patch**2, frames, height, width)


def position_ids(frames: int, height: int, width: int, device: torch.device) -> Float[Tensor, "1 S 3"]:
    """Return (frame, row, column) of every token; height and width are in tokens. Text tokens are all at (0, 0, 0)."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in (frames, height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(1, -1, 3)
