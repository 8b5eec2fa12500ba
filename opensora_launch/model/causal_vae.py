"""The Hunyuan causal video VAE: convolutions and attention look back only. Parameter names are the public ones.

    B rows   C channels   T frames   H rows of pixels   W columns of pixels, all at the level of the layer

A tile of 129 frames of 256 x 256 pixels is more than 2^31 numbers in the last layers. Convolutions are cut in time
there, upsampling is a copy, and attention goes frame by frame: a frame sees itself and the frames before, so no
mask of (T H W)^2 is ever built. (diffusers' class has the same weights and results, and none of these three.)
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.config import VaeConfig

NORM_EPS = 1e-6
CONV_NUMBERS = 2**30  # of a convolution's padded input or output at once; kernels index with 32 bits
SPACE_LEVELS, TIME_LEVELS = (0, 1, 2), (1, 2)  # blocks that halve or double space and time: 8 and 4 in all


class CausalConv3d(nn.Module):
    """Edges are repeated: k - 1 frames in front, k // 2 pixels around."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        """All frames at once, or as many as stay under CONV_NUMBERS, with the k - 1 frames before them."""
        channels = max(self.conv.in_channels, self.conv.out_channels)
        frame = x.shape[0] * channels * (x.shape[3] + self.kernel - 1) * (x.shape[4] + self.kernel - 1)
        at_once = max(1, (CONV_NUMBERS // frame - self.kernel + 1) // self.stride[0])
        frames = (x.shape[2] - 1) // self.stride[0] + 1
        if frames <= at_once:
            return self._some(x, 0, frames)
        return torch.cat([self._some(x, i, min(i + at_once, frames)) for i in range(0, frames, at_once)], dim=2)

    def _some(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Output frames start..stop. Input frame i is frame i + k - 1 after padding."""
        first = start * self.stride[0] - self.kernel + 1
        part = x[:, :, max(0, first) : (stop - 1) * self.stride[0] + 1]
        around = self.kernel // 2
        if self.kernel > 1:
            part = F.pad(part, (around, around, around, around, max(0, -first), 0), mode="replicate")
        out: Tensor = self.conv(part)
        return out


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = CausalConv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D T H W"]:
        hidden = self.conv1(F.silu(self.norm1(x), inplace=True))
        hidden = self.conv2(F.silu(self.norm2(hidden), inplace=True))
        out: Tensor = hidden.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class FrameAttention(nn.Module):
    """One head over all positions of this frame and of the frames before."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        tokens = self.group_norm(x).flatten(2).mT
        q, k, v = (to(tokens)[:, None] for to in (self.to_q, self.to_k, self.to_v))
        frame = x.shape[3] * x.shape[4]
        ends = range(frame, tokens.shape[1] + 1, frame)
        seen = [
            F.scaled_dot_product_attention(q[:, :, end - frame : end], k[:, :, :end], v[:, :, :end]) for end in ends
        ]
        out: Tensor = self.to_out[0](torch.cat(seen, dim=2)[:, 0])
        return x + out.mT.reshape(x.shape)


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)])

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=stride)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C t h w"]:
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Repeats pixels, and frames but the first: T frames become 1 + (T - 1) * factor."""

    def __init__(self, channels: int, factor: tuple[int, int, int]) -> None:
        super().__init__()
        self.factor = factor
        self.conv = CausalConv3d(channels, channels)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C t h w"]:
        time, rows, columns = self.factor
        batch, channels, frames, height, width = x.shape
        wide = x.new_empty(batch, channels, 1 + (frames - 1) * time, height, rows, width, columns)
        wide[:, :, 0] = x[:, :, 0, :, None, :, None]
        wide[:, :, 1:].unflatten(2, (frames - 1, time))[:] = x[:, :, 1:, None, :, None, :, None]
        out: Tensor = self.conv(wide.flatten(5).flatten(3, 4))
        return out


class Stage(nn.Module):
    """Residual blocks, and after them a change of resolution under its public name."""

    def __init__(self, widths: list[int], groups: int, **resampling: nn.Module) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairwise(widths))
        for name, layer in resampling.items():
            self.add_module(name, nn.ModuleList([layer]))

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        for layers in self.children():
            for layer in layers.children():
                x = layer(x)
        return x


def down_block(in_channels: int, out_channels: int, level: int, cfg: VaeConfig) -> Stage:
    widths = [in_channels] + [out_channels] * cfg.layers_per_block
    if level not in SPACE_LEVELS:
        return Stage(widths, cfg.norm_num_groups)
    stride = (2 if level in TIME_LEVELS else 1, 2, 2)
    return Stage(widths, cfg.norm_num_groups, downsamplers=Downsample(out_channels, stride))


def up_block(in_channels: int, out_channels: int, level: int, cfg: VaeConfig) -> Stage:
    widths = [in_channels] + [out_channels] * (cfg.layers_per_block + 1)
    if level not in SPACE_LEVELS:
        return Stage(widths, cfg.norm_num_groups)
    factor = (2 if level in TIME_LEVELS else 1, 2, 2)
    return Stage(widths, cfg.norm_num_groups, upsamplers=Upsample(out_channels, factor))


class Encoder(nn.Module):
    def __init__(self, cfg: VaeConfig) -> None:
        super().__init__()
        widths = cfg.block_out_channels
        self.conv_in = CausalConv3d(cfg.in_channels, widths[0])
        pairs = pairwise([widths[0], *widths])
        self.down_blocks = nn.ModuleList(down_block(a, b, level, cfg) for level, (a, b) in enumerate(pairs))
        self.mid_block = MidBlock(widths[-1], cfg.norm_num_groups)
        self.conv_norm_out = nn.GroupNorm(cfg.norm_num_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = CausalConv3d(widths[-1], 2 * cfg.latent_channels)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B M t h w"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x)), inplace=True))
        return out


class Decoder(nn.Module):
    def __init__(self, cfg: VaeConfig) -> None:
        super().__init__()
        widths = cfg.block_out_channels[::-1]
        self.conv_in = CausalConv3d(cfg.latent_channels, widths[0])
        self.mid_block = MidBlock(widths[0], cfg.norm_num_groups)
        pairs = pairwise([widths[0], *widths])
        self.up_blocks = nn.ModuleList(up_block(a, b, level, cfg) for level, (a, b) in enumerate(pairs))
        self.conv_norm_out = nn.GroupNorm(cfg.norm_num_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = CausalConv3d(widths[-1], cfg.out_channels)

    def forward(self, z: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B P t h w"]:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x), inplace=True))
        return out


class CausalVae(nn.Module):
    """Pixels in [-1, 1] to moments (mean, then log variance) of latents, and latents to pixels; untiled, unscaled."""

    def __init__(self, cfg: VaeConfig) -> None:
        super().__init__()
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = nn.Conv3d(2 * cfg.latent_channels, 2 * cfg.latent_channels, 1)
        self.post_quant_conv = nn.Conv3d(cfg.latent_channels, cfg.latent_channels, 1)

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B M t h w"]:
        out: Tensor = self.quant_conv(self.encoder(pixels))
        return out

    def decode(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        out: Tensor = self.decoder(self.post_quant_conv(z))
        return out
