"""The Hunyuan causal video VAE, whose convolutions and attention only look back. Parameter names are the public ones.

    B videos   C channels   T frames   H height   W width, all at the level of the layer

For a tile of 129 frames of 256 x 256 pixels, an activation of the last layers takes 2 GiB in bf16, and some have more
than 2^31 numbers. So above VAE_CHUNK_NUMBERS, norm, upsampling and convolution run together on some of the frames at a
time, and a convolution overwrites its input from the last frames to the first, since outputs only look back. At most
three activations of 128 channels are alive. Attention runs frame by frame: a frame sees itself and earlier frames, so
no mask of (T H W)^2 is ever built. (The class of diffusers has the same weights and results, without these savings.)
The cut depends on shapes alone, so a tile has the same bits wherever it is computed.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.model.video_layout import empty_video, layout_of, repeat_edges
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.model_constants import VAE_CHUNK_NUMBERS

_NORM_EPS = 1e-6
SPACE_LEVELS, TIME_LEVELS = (0, 1, 2), (1, 2)  # blocks that halve or double space and time: 8 and 4 in all


class CausalConv3d(nn.Module):
    """A convolution that pads by repeating the edge: k - 1 frames in front, k // 2 pixels around."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        return self.over(x.shape, lambda first, stop: x[:, :, first:stop])

    def over(
        self, shape: torch.Size, frames: Callable[[int, int], Tensor], into: Tensor | None = None
    ) -> Float[Tensor, "B D t h w"]:
        """Convolve an input of `shape`, whose frames first..stop are given by `frames(first, stop)`.

        `into` may be overwritten, even where `frames` reads from it: parts are computed from the last to the first.
        """
        batch, _, length, height, width = shape
        around = self.kernel - 1
        out_height, out_width = ((n - 1) // s + 1 for n, s in zip((height, width), self.stride[1:], strict=True))
        inputs = batch * self.conv.in_channels * (height + around) * (width + around)
        outputs = batch * self.conv.out_channels * out_height * out_width
        at_once = max(1, (VAE_CHUNK_NUMBERS // max(inputs, outputs) - around) // self.stride[0])
        count = (length - 1) // self.stride[0] + 1
        if count <= at_once:
            return self._some(frames, 0, count)
        for stop in range(count, 0, -at_once):
            part = self._some(frames, max(0, stop - at_once), stop)
            if into is None:
                shape = torch.Size([batch, self.conv.out_channels, count, out_height, out_width])
                into = empty_video(shape, like=part, layout=layout_of(part))
            into[:, :, max(0, stop - at_once) : stop] = part
        assert into is not None
        return into

    def _some(self, frames: Callable[[int, int], Tensor], start: int, stop: int) -> Tensor:
        """Compute the output frames start..stop. Input frame i is frame i + k - 1 after padding."""
        first = start * self.stride[0] - self.kernel + 1
        part = frames(max(0, first), (stop - 1) * self.stride[0] + 1)
        if self.kernel > 1:
            part = repeat_edges(part, max(0, -first), self.kernel // 2, layout_of(self.conv.weight))
        out: Tensor = self.conv(part)
        return out


def normed_conv(norm: nn.GroupNorm, conv: CausalConv3d, x: Tensor, into: Tensor | None = None) -> Tensor:
    """Compute conv(silu(norm(x))), B C T H W to B D t h w. `into` may be overwritten, and may be x itself."""
    if x.numel() <= VAE_CHUNK_NUMBERS:
        normed = F.silu(norm(x), inplace=True)
        return conv.over(x.shape, lambda first, stop: normed[:, :, first:stop], into)
    scale, shift = scale_and_shift(norm, x)

    def frames(first: int, stop: int) -> Tensor:
        return F.silu(torch.addcmul(shift, x[:, :, first:stop], scale).to(x.dtype), inplace=True)

    return conv.over(x.shape, frames, into)


def scale_and_shift(norm: nn.GroupNorm, x: Float[Tensor, "B C T H W"]) -> tuple[Tensor, Tensor]:
    """Express a group norm of x as x * scale + shift: both B C 1 1 1, fp32 or wider. Moments are added up by frames.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1, with equal parts.
    """
    groups = (x.shape[0], norm.num_groups, -1)
    wide = torch.promote_types(x.dtype, torch.float32)
    each = [torch.var_mean(frame.to(wide).reshape(groups), dim=2, correction=0) for frame in x.unbind(2)]
    variances, means = torch.stack([v for v, _ in each]), torch.stack([m for _, m in each])
    spread, mean = torch.var_mean(means, dim=0, correction=0)
    rate = (variances.mean(0) + spread + norm.eps).rsqrt()
    per_group = x.shape[1] // norm.num_groups
    rate, mean = (moment.repeat_interleave(per_group, dim=1) for moment in (rate, mean))
    scale = rate * norm.weight.to(wide)
    shift = norm.bias.to(wide) - mean * scale
    return scale[..., None, None, None], shift[..., None, None, None]


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=_NORM_EPS)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=_NORM_EPS)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = CausalConv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D T H W"]:
        hidden = normed_conv(self.norm1, self.conv1, x)
        hidden = normed_conv(self.norm2, self.conv2, hidden, into=hidden)
        if self.conv_shortcut is None:
            return hidden.add_(x)
        at_once = max(1, VAE_CHUNK_NUMBERS // x[:, :, 0].numel())
        for out, part in zip(hidden.split(at_once, dim=2), x.split(at_once, dim=2), strict=True):
            out += self.conv_shortcut(part)
        return hidden


class FrameAttention(nn.Module):
    """Attention of one head over all positions of a frame and of the frames before it."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=_NORM_EPS)
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


class Upsample(nn.Module):
    """Repeat pixels, and all frames but the first: T frames become 1 + (T - 1) * factor. Then convolve."""

    def __init__(self, channels: int, factor: tuple[int, int, int]) -> None:
        super().__init__()
        self.factor = factor
        self.conv = CausalConv3d(channels, channels)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C t h w"]:
        time, down, right = self.factor
        batch, channels, frames, height, width = x.shape
        shape = torch.Size([batch, channels, 1 + (frames - 1) * time, height * down, width * right])

        def source(frame: int) -> int:
            return (frame + time - 1) // time  # the input frame of an output frame

        def repeated(first: int, stop: int) -> Tensor:
            """Repeat slices: a list of frames would be copied to the GPU, which then is waited for."""
            start, count = source(first), source(stop - 1) + 1 - source(first)
            size = torch.Size([batch, channels, count * time, height * down, width * right])
            out = empty_video(size, like=x, layout=layout_of(self.conv.conv.weight))
            places = out.view(batch, channels, count, time, height, down, width, right)
            places.copy_(x[:, :, start : start + count, None, :, None, :, None].expand_as(places))
            skipped = first + time - 1 - start * time
            return out[:, :, skipped : skipped + stop - first]

        return self.conv.over(shape, repeated)


class Stage(nn.Module):
    """Residual blocks and then a change of resolution, under its public name. A list of layers, which is not called."""

    def __init__(self, widths: list[int], groups: int, **resampling: nn.Module) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairwise(widths))
        for name, layer in resampling.items():
            self.add_module(name, nn.ModuleList([layer]))

    def layers(self) -> Iterator[nn.Module]:
        """Yield the layers in order. The caller runs them, because a `forward` here would hold its input to the end."""
        for layers in self.children():
            yield from layers.children()


def resampling_stages(widths: list[int], cfg: VaeConfig, *, up: bool) -> nn.ModuleList:
    """Return the stages of these widths, each with the change of resolution that follows it."""
    made = nn.ModuleList()
    for level, (before, width) in enumerate(pairwise([widths[0], *widths])):
        resampling: dict[str, nn.Module] = {}
        if level in SPACE_LEVELS:
            ratio = (2 if level in TIME_LEVELS else 1, 2, 2)
            if up:
                resampling["upsamplers"] = Upsample(width, ratio)
            else:
                resampling["downsamplers"] = nn.Sequential(OrderedDict(conv=CausalConv3d(width, width, stride=ratio)))
        layers = cfg.layers_per_block + up
        made.append(Stage([before] + [width] * layers, cfg.norm_num_groups, **resampling))
    return made


def layers_of(stages: nn.ModuleList) -> Iterator[nn.Module]:
    for stage in stages:
        assert isinstance(stage, Stage)
        yield from stage.layers()


class VaeEncoder(nn.Module):
    def __init__(self, cfg: VaeConfig) -> None:
        super().__init__()
        widths = cfg.block_out_channels
        self.conv_in = CausalConv3d(cfg.in_channels, widths[0])
        self.down_blocks = resampling_stages(widths, cfg, up=False)
        self.mid_block = MidBlock(widths[-1], cfg.norm_num_groups)
        self.conv_norm_out = nn.GroupNorm(cfg.norm_num_groups, widths[-1], eps=_NORM_EPS)
        self.conv_out = CausalConv3d(widths[-1], 2 * cfg.latent_channels)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B M t h w"]:
        x = self.conv_in(x)
        for layer in layers_of(self.down_blocks):
            x = layer(x)
        return normed_conv(self.conv_norm_out, self.conv_out, self.mid_block(x))


class VaeDecoder(nn.Module):
    def __init__(self, cfg: VaeConfig) -> None:
        super().__init__()
        widths = cfg.block_out_channels[::-1]
        self.conv_in = CausalConv3d(cfg.latent_channels, widths[0])
        self.mid_block = MidBlock(widths[0], cfg.norm_num_groups)
        self.up_blocks = resampling_stages(widths, cfg, up=True)
        self.conv_norm_out = nn.GroupNorm(cfg.norm_num_groups, widths[-1], eps=_NORM_EPS)
        self.conv_out = CausalConv3d(widths[-1], cfg.out_channels)

    def forward(self, z: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B P t h w"]:
        x = self.mid_block(self.conv_in(z))
        for layer in layers_of(self.up_blocks):
            x = layer(x)
        return normed_conv(self.conv_norm_out, self.conv_out, x)


class CausalVae(nn.Module):
    """Map pixels in [-1, 1] to moments of latents (mean, then log variance) and back, untiled and unscaled.

    Results lie plainly in memory, as whoever sends them expects.
    """

    def __init__(self, cfg: VaeConfig) -> None:
        super().__init__()
        self.encoder = VaeEncoder(cfg)
        self.decoder = VaeDecoder(cfg)
        self.quant_conv = nn.Conv3d(2 * cfg.latent_channels, 2 * cfg.latent_channels, 1)
        self.post_quant_conv = nn.Conv3d(cfg.latent_channels, cfg.latent_channels, 1)

    @property
    def like(self) -> Tensor:
        """A weight, of the dtype and device that it computes in."""
        return self.post_quant_conv.weight

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B M t h w"]:
        out: Tensor = self.quant_conv(self.encoder(pixels))
        return out.contiguous()

    def decode(self, z: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        out: Tensor = self.decoder(self.post_quant_conv(z))
        return out.contiguous()
