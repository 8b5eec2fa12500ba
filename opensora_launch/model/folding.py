"""The shortcuts of the Video DC-AE: neighbours become channels, and channels are averaged or repeated."""

from jaxtyping import Float
from torch import Tensor


def fold(x: Float[Tensor, "B C T H W"], times: int) -> Float[Tensor, "B D t h w"]:
    """Move `times` x 2 x 2 neighbours into channels, in the order (C, time, height, width)."""
    batch, channels, frames, height, width = x.shape
    split = x.reshape(batch, channels, frames // times, times, height // 2, 2, width // 2, 2)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def unfold(x: Float[Tensor, "B D t h w"], times: int) -> Float[Tensor, "B C T H W"]:
    """The inverse of `fold`."""
    batch, channels, frames, height, width = x.shape
    split = x.reshape(batch, channels // (4 * times), times, 2, 2, frames, height, width)
    return split.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, -1, frames * times, height * 2, width * 2)


def averaged(x: Float[Tensor, "B C T H W"], channels: int) -> Float[Tensor, "B D T H W"]:
    """Average neighbouring channels until `channels` are left."""
    batch, _, frames, height, width = x.shape
    return x.reshape(batch, channels, -1, frames, height, width).mean(dim=2)


def repeated_channels(x: Float[Tensor, "B C T H W"], channels: int) -> Float[Tensor, "B D T H W"]:
    """Repeat each channel until there are `channels`."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)
