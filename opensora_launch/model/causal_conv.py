"""Convolutions that look back in time, and the norms before them, on one part of the frames at a time.

B videos   C D channels   T t frames   H h height   W w width
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.model.frame_shares import WHOLE, FrameLevel
from opensora_launch.model.video_layout import empty_video, layout_of, repeat_edges
from opensora_launch.schema.model_constants import VAE_CHUNK_NUMBERS

NORM_EPS = 1e-6


class CausalConv3d(nn.Module):
    """A convolution that pads by repeating the edge: k - 1 frames in front, k // 2 pixels around."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride)

    def forward(self, x: Float[Tensor, "B C T H W"], level: FrameLevel = WHOLE) -> Float[Tensor, "B D t h w"]:
        return self.over(x.shape, lambda first, stop: x[:, :, first:stop], level, level.before(x, self.kernel - 1))

    def over(
        self,
        shape: torch.Size,
        frames: Callable[[int, int], Tensor],
        level: FrameLevel,
        earlier: Float[Tensor, "B C k H W"] | None,
        into: Tensor | None = None,
    ) -> Float[Tensor, "B D t h w"]:
        """Convolve an input of `shape`, whose frames first..stop are given by `frames(first, stop)`.

        earlier: the k - 1 frames before them, if other ranks have those. `into` may be overwritten, even where `frames`
        reads from it: each frame is read once, and the last ones of a part are kept for the next part.
        """
        batch, _, length, height, width = shape
        around, stride = self.kernel - 1, self.stride[0]
        out_height, out_width = ((n - 1) // s + 1 for n, s in zip((height, width), self.stride[1:], strict=True))
        inputs = batch * self.conv.in_channels * (height + around) * (width + around)
        outputs = batch * self.conv.out_channels * out_height * out_width
        at_once = max(1, (VAE_CHUNK_NUMBERS // max(inputs, outputs) - around) // stride)
        count, read = (length - 1) // stride + 1, 0
        for start, stop in level.pieces(count, at_once):
            last = (stop - 1) * stride + 1
            part = frames(read, last)
            if self.kernel > 1:
                part = repeat_edges(part, earlier, around, self.kernel // 2, layout_of(self.conv.weight))
                earlier = part[:, :, stride - self.kernel :, 1 : 1 + height, 1 : 1 + width].clone()
            read = last
            out: Tensor = self.conv(part)
            if stop - start == count:
                return out
            if into is None:
                size = torch.Size([batch, self.conv.out_channels, count, out_height, out_width])
                into = empty_video(size, like=out, layout=layout_of(out))
            into[:, :, start:stop] = out
        assert into is not None
        return into


def normed_conv(
    norm: nn.GroupNorm, conv: CausalConv3d, x: Tensor, level: FrameLevel = WHOLE, into: Tensor | None = None
) -> Tensor:
    """Compute conv(silu(norm(x))), B C T H W to B D t h w. `into` may be overwritten, and may be x itself."""
    if level is WHOLE and x.numel() <= VAE_CHUNK_NUMBERS:
        normed = F.silu(norm(x), inplace=True)
        return conv.over(x.shape, lambda first, stop: normed[:, :, first:stop], level, None, into)
    scale, shift = scale_and_shift(norm, x, level)
    activated, before = level.norms.activated, level.before(x, conv.kernel - 1)
    earlier = None if before is None else activated(before, scale, shift)
    return conv.over(x.shape, lambda first, stop: activated(x[:, :, first:stop], scale, shift), level, earlier, into)


def scale_and_shift(
    norm: nn.GroupNorm, x: Float[Tensor, "B C T H W"], level: FrameLevel = WHOLE
) -> tuple[Tensor, Tensor]:
    """Express a group norm of x as x * scale + shift: both B C 1 1 1, fp32 or wider. Moments are added up by frames.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1, with equal parts.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    own = torch.stack([level.norms.moments(frame, norm.num_groups) for frame in x.unbind(2)])
    variances, means = level.gathered(own).unbind(1)
    spread, mean = torch.var_mean(means, dim=0, correction=0)
    rate = (variances.mean(0) + spread + norm.eps).rsqrt()
    per_group = x.shape[1] // norm.num_groups
    rate, mean = (moment.repeat_interleave(per_group, dim=1) for moment in (rate, mean))
    scale = rate * norm.weight.to(wide)
    shift = norm.bias.to(wide) - mean * scale
    return scale[..., None, None, None], shift[..., None, None, None]
