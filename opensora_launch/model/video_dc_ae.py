"""The Video DC-AE: an autoencoder of high compression, 32 in space and 4 in time. Parameter names are the public ones.

    B videos   C channels   T frames   H height   W width, all at the level of the layer

Space is halved between two stages: 32 by the public model's six stages, less by a model with fewer.

It is neither causal nor random: convolutions look to both sides in time, and a video has one latent. A single frame
stays a single frame. Attention is linear in the number of positions, and global within a tile, so memory grows with a
tile alone (hpcaitech/Open-Sora, models/dc_ae; Chen et al. 2024, https://arxiv.org/abs/2410.10733).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.model.folding import averaged, fold, repeated_channels, unfold
from opensora_launch.schema.autoencoder import DcAeConfig, VaeConfig
from opensora_launch.schema.model_constants import DC_AE_CONV_STAGES, DC_AE_HEAD, DC_AE_WIDENED

_NORM_EPS, _DIVISION_EPS = 1e-5, 1e-15
_NORM_NUMBERS = 2**24  # numbers that a norm widens to fp32 at once


class Rms(nn.Module):
    """Divide by the root of the mean square over channels, computed in fp32; then weight and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        if x.numel() <= _NORM_NUMBERS:
            return self._normed(x)
        out, at_once = torch.empty_like(x), max(1, x.shape[2] * _NORM_NUMBERS // x.numel())
        for first in range(0, x.shape[2], at_once):
            out[:, :, first : first + at_once] = self._normed(x[:, :, first : first + at_once])
        return out

    def _normed(self, x: Tensor) -> Tensor:
        mean_square = x.float().square().mean(dim=1, keepdim=True)
        normed = (x / torch.sqrt(mean_square + _NORM_EPS)).to(x.dtype)
        return normed * self.weight.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)


class Conv(nn.Module):
    """A convolution over zeros at every border, and a norm if asked for."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        groups: int = 1,
        bias: bool = True,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = Rms(outputs) if norm else None

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        out = self.conv(x) if x.shape[2] > 1 else self._of_one_frame(x)
        return out if self.norm is None else self.norm(out)

    def _of_one_frame(self, x: Float[Tensor, "B C 1 H W"]) -> Float[Tensor, "B D 1 h w"]:
        """Convolve with the one tap in time that meets the frame. With all, torch 2.13 errs in bf16 on AMX CPUs."""
        conv, stride, padding = self.conv, self.conv.stride[1:], self.conv.padding[1:]
        middle = conv.weight[:, :, conv.kernel_size[0] // 2]
        return F.conv2d(x[:, :, 0], middle, conv.bias, stride, padding, groups=conv.groups)[:, :, None]


class Plus(nn.Module):
    """main(x) + shortcut(x). The sum needs no memory of its own."""

    def __init__(self, main: nn.Module, shortcut: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        out: Tensor = self.main(x)
        return out.add_(self.shortcut(x))


class OpList(nn.Module):
    """Layers one after another, under their public name."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(layers)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        for layer in self.op_list:
            x = layer(x)
        return x


class LinearAttention(nn.Module):
    """Attend over all positions with relu(q) and relu(k); half of the heads see 5 x 5 x 5 neighbourhoods."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.qkv = Conv(channels, wide, 1, bias=False)
        around = nn.Conv3d(wide, wide, 5, padding=2, groups=wide, bias=False)
        mixed = nn.Conv3d(wide, wide, 1, groups=wide // DC_AE_HEAD, bias=False)
        self.aggreg = nn.ModuleList([nn.Sequential(around, mixed)])
        self.proj = Conv(2 * channels, channels, 1, bias=False, norm=True)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        qkv = self.qkv(x)
        heads = torch.cat([qkv, self.aggreg[0](qkv)], dim=1).flatten(2).unflatten(1, (-1, 3 * DC_AE_HEAD))
        q, k, v = heads.chunk(3, dim=2)  # B heads DC_AE_HEAD positions
        summed = F.pad(v, (0, 0, 0, 1), value=1.0) @ F.relu(k).transpose(2, 3)  # the last row sums k
        out = (summed @ F.relu(q)).float()
        out = (out[:, :, :-1] / (out[:, :, -1:] + _DIVISION_EPS)).to(x.dtype)
        projected: Tensor = self.proj(out.flatten(1, 2).unflatten(2, x.shape[2:]))
        return projected


class GluConv(nn.Module):
    """A gated depthwise convolution between two products."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * DC_AE_WIDENED * channels
        self.inverted_conv = Conv(channels, wide, 1)
        self.depth_conv = Conv(wide, wide, groups=wide)
        self.point_conv = Conv(wide // 2, channels, 1, bias=False, norm=True)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        wide, gate = self.depth_conv(F.silu(self.inverted_conv(x))).chunk(2, dim=1)
        out: Tensor = self.point_conv(wide * F.silu(gate))
        return out


def conv_block(channels: int) -> nn.Module:
    convs = Conv(channels, channels), Conv(channels, channels, bias=False, norm=True)
    return Plus(nn.Sequential(OrderedDict(conv1=convs[0], act=nn.SiLU(), conv2=convs[1])))


def attention_block(channels: int) -> nn.Module:
    attention, glu = LinearAttention(channels), GluConv(channels)
    return nn.Sequential(OrderedDict(context_module=Plus(attention), local_module=Plus(glu)))


class UpConv(nn.Module):
    """Double space by nearest positions, and time if asked for, and convolve."""

    def __init__(self, inputs: int, outputs: int, in_time: bool) -> None:
        super().__init__()
        self.conv, self.in_time = Conv(inputs, outputs), in_time

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=(_times(x, self.in_time), 2, 2), mode="nearest"))
        return out


def _times(x: Tensor, in_time: bool) -> int:
    """Return by how much a step between two stages changes time: a single frame stays one."""
    return 1 + (in_time and x.shape[2] > 1)


def down(inputs: int, outputs: int, in_time: bool) -> Plus:
    """Halve space, and time if asked for: a convolution, plus positions folded into channels and averaged."""
    conv = Conv(inputs, outputs, stride=(1 + in_time, 2, 2))
    return Plus(conv, lambda x: averaged(fold(x, _times(x, in_time)), outputs))


def up(inputs: int, outputs: int, in_time: bool) -> Plus:
    """Double space, and time if asked for: nearest positions and a convolution, plus channels repeated and unfolded."""

    def shortcut(x: Tensor) -> Tensor:
        times = _times(x, in_time)
        return unfold(repeated_channels(x, outputs * times * 4), times)

    return Plus(UpConv(inputs, outputs, in_time), shortcut)


def _stages(widths: Sequence[int], depths: Sequence[int]) -> list[list[nn.Module]]:
    return [
        [conv_block(width) if stage < DC_AE_CONV_STAGES else attention_block(width) for _ in range(depth)]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True))
    ]


class Encoder(nn.Module):
    def __init__(self, cfg: DcAeConfig, pixels: int, latent: int) -> None:
        super().__init__()
        widths = cfg.widths
        self.project_in = Conv(pixels, widths[0])
        stages = _stages(widths, cfg.encoder_depths)
        for i, (width, smaller) in enumerate(pairwise(widths)):
            stages[i].append(down(width, smaller, cfg.halves_time(i)))
        self.stages = nn.ModuleList(map(OpList, stages))
        self.project_out = Plus(OpList([Conv(widths[-1], latent)]), lambda x: averaged(x, latent))

    def forward(self, x: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        x = self.project_in(x)
        for stage in self.stages:
            x = stage(x)
        out: Tensor = self.project_out(x)
        return out


class Decoder(nn.Module):
    def __init__(self, cfg: DcAeConfig, latent: int, pixels: int) -> None:
        super().__init__()
        widths = cfg.widths
        self.project_in = Plus(Conv(latent, widths[-1]), lambda x: repeated_channels(x, widths[-1]))
        stages = _stages(widths, cfg.decoder_depths)
        for i, (width, smaller) in enumerate(pairwise(widths)):
            stages[i].insert(0, up(smaller, width, cfg.halves_time(i)))
        self.stages = nn.ModuleList(map(OpList, stages))
        self.project_out = OpList([Rms(widths[0]), nn.ReLU(), Conv(widths[0], pixels)])

    def forward(self, x: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        x = self.project_in(x)
        for stage in reversed(self.stages):
            x = stage(x)
        out: Tensor = self.project_out(x)
        return out


class VideoDcAe(nn.Module):
    """Encodes B 3 T H W pixels into B C t h w latents and back; T is 1 or a multiple of 4, H and W of the stride."""

    def __init__(self, cfg: VaeConfig) -> None:
        super().__init__()
        self.encoder = Encoder(cfg.dc_ae, cfg.in_channels, cfg.latent_channels)
        self.decoder = Decoder(cfg.dc_ae, cfg.latent_channels, cfg.out_channels)

    @property
    def like(self) -> Tensor:
        """A weight, of the dtype and device that it computes in."""
        return next(self.decoder.parameters())

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        out: Tensor = self.encoder(pixels)
        return out

    def decode(self, latent: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        out: Tensor = self.decoder(latent)
        return out
