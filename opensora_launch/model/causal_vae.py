"""The Hunyuan causal video VAE, whose convolutions and attention only look back. Parameter names are the public ones.

    B videos   C channels   T frames   H height   W width, all at the level of the layer

For a tile of 129 frames of 256 x 256 pixels, an activation of the last layers takes 2 GiB in bf16, and some have more
than 2^31 numbers. So norm, upsampling and convolution run together on one part of the frames at a time, of at most
VAE_CHUNK_NUMBERS. A convolution may overwrite its input: it keeps those frames that the next part sees. At most three
activations of 128 channels are alive. Attention runs frame by frame: a frame sees itself and earlier frames, so no mask
of (T H W)^2 is ever built. (The class of diffusers has the same weights and results, without these savings.) The cut
depends on shapes alone, so a tile has the same bits wherever it is computed, also if its frames are divided among ranks
(frame_shares.py).
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.model.causal_conv import NORM_EPS, CausalConv3d, normed_conv, scale_and_shift
from opensora_launch.model.frame_norms import EAGER_NORMS, Norms
from opensora_launch.model.frame_shares import WHOLE, FrameLevel, FrameShare
from opensora_launch.model.video_layout import empty_video, layout_of
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.model_constants import VAE_CHUNK_NUMBERS

SPACE_LEVELS, TIME_LEVELS = (0, 1, 2), (1, 2)  # blocks that halve or double space and time: 8 and 4 in all


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = CausalConv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Float[Tensor, "B C T H W"], level: FrameLevel = WHOLE) -> Float[Tensor, "B D T H W"]:
        hidden = normed_conv(self.norm1, self.conv1, x, level)
        hidden = normed_conv(self.norm2, self.conv2, hidden, level, into=hidden)
        if self.conv_shortcut is None:
            return hidden.add_(x)
        at_once = max(1, VAE_CHUNK_NUMBERS // x[:, :, 0].numel())
        for first, stop in level.pieces(x.shape[2], at_once):
            hidden[:, :, first:stop] += self.conv_shortcut(x[:, :, first:stop])
        return hidden


class FrameAttention(nn.Module):
    """Attention of one head over all positions of a frame and of the frames before it."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Float[Tensor, "B C T H W"], level: FrameLevel = WHOLE) -> Float[Tensor, "B C T H W"]:
        if level is WHOLE:
            return x + self._attended([self.group_norm(x)], level).reshape(x.shape)
        scale, shift = scale_and_shift(self.group_norm, x, level)
        pieces = level.pieces(x.shape[2], x.shape[2])
        normed = [torch.addcmul(shift, x[:, :, first:stop], scale).to(x.dtype) for first, stop in pieces]
        return x + self._attended(normed, level).reshape(x.shape)

    def _attended(self, parts: Sequence[Tensor], level: FrameLevel) -> Float[Tensor, "B C S"]:
        """Return what our frames (each part B C t H W) see of themselves and of all earlier ones."""
        frame = parts[0].shape[3] * parts[0].shape[4]
        tokens = [part.flatten(2).mT for part in parts]
        q, k, v = (torch.cat([to(each) for each in tokens], dim=1) for to in (self.to_q, self.to_k, self.to_v))
        own = torch.stack([k, v]).unflatten(2, (-1, frame)).movedim(2, 0).contiguous()  # frame, k or v, B, position, C
        k, v = (each[:, None] for each in level.gathered(own).movedim(0, 2).flatten(2, 3))
        q, seen = q[:, None], []
        for start in range(0, q.shape[2], frame):
            stop = (level.earlier * frame) + start + frame
            seen.append(F.scaled_dot_product_attention(q[:, :, start : start + frame], k[:, :, :stop], v[:, :, :stop]))
        counts = [each.shape[1] for each in tokens]
        outs = [self.to_out[0](part) for part in torch.cat(seen, dim=2)[:, 0].split(counts, dim=1)]
        return torch.cat(outs, dim=1).mT


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)])

    def forward(self, x: Float[Tensor, "B C T H W"], level: FrameLevel = WHOLE) -> Float[Tensor, "B C T H W"]:
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x, level), level), level)
        return out


class Upsample(nn.Module):
    """Repeat pixels, and all frames but the first: T frames become 1 + (T - 1) * factor. Then convolve."""

    def __init__(self, channels: int, factor: tuple[int, int, int]) -> None:
        super().__init__()
        self.factor = factor
        self.conv = CausalConv3d(channels, channels)

    def forward(self, x: Float[Tensor, "B C T H W"], level: FrameLevel = WHOLE) -> Float[Tensor, "B C t h w"]:
        time, down, right = self.factor
        batch, channels, frames, height, width = x.shape
        single = time - 1 if level.is_first else 0  # repetitions that the first frame of all does not get
        shape = torch.Size([batch, channels, frames * time - single, height * down, width * right])
        around = self.conv.kernel - 1
        before = level.before(x, -(-around // time))

        def repeated(x: Tensor) -> Tensor:
            size = torch.Size([batch, channels, x.shape[2] * time, height * down, width * right])
            out = empty_video(size, like=x, layout=layout_of(self.conv.conv.weight))
            places = out.view(batch, channels, x.shape[2], time, height, down, width, right)
            places.copy_(x[:, :, :, None, :, None, :, None].expand_as(places))
            return out

        def some(first: int, stop: int) -> Tensor:
            """Repeat slices: a list of frames would be copied to the GPU, which then is waited for."""
            start, end = (first + single) // time, (stop - 1 + single) // time + 1  # the input frames of these
            skipped = first + single - start * time
            return repeated(x[:, :, start:end])[:, :, skipped : skipped + stop - first]

        earlier = None if before is None else repeated(before)[:, :, -around:]
        return self.conv.over(shape, some, level.up(time), earlier)


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
        self.conv_norm_out = nn.GroupNorm(cfg.norm_num_groups, widths[-1], eps=NORM_EPS)
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
        self.conv_norm_out = nn.GroupNorm(cfg.norm_num_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = CausalConv3d(widths[-1], cfg.out_channels)

    def forward(self, z: Float[Tensor, "B C T H W"], level: FrameLevel = WHOLE) -> Float[Tensor, "B P t h w"]:
        x = self.mid_block(self.conv_in(z, level), level)
        for layer in layers_of(self.up_blocks):
            x = layer(x, level)
            if level is not WHOLE and isinstance(layer, Upsample):
                level = level.up(layer.factor[0])
        return normed_conv(self.conv_norm_out, self.conv_out, x, level)


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

    def decode(
        self, z: Float[Tensor, "B C t h w"], share: FrameShare | None = None, norms: Norms = EAGER_NORMS
    ) -> Float[Tensor, "B 3 T H W"]:
        """Decode the latents, which are those of the share. Without one, they are all, and computed at once."""
        level = WHOLE if share is None else FrameLevel(share, norms=norms)
        z = torch.cat([self.post_quant_conv(z[:, :, a:b]) for a, b in level.pieces(z.shape[2], z.shape[2])], 2)
        out: Tensor = self.decoder(z, level)
        return out.contiguous()
