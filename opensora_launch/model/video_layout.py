"""How the causal VAE's videos and weights lie in memory: plainly, or with the channels last.

    B videos   C channels   T frames   H height   W width

The weights decide, and the convolutions' inputs and outputs follow them. On CUDA, 16-bit weights have their channels
last. For plain ones, torch refuses cuDNN 9.8 to 9.14, because large results are wrong (pytorch#163539), and takes a way
with about 17 times the memory and 4 to 20 times the time (pytorch#166643, pytorch#166122, pytorch#174051).
"""

import torch
from jaxtyping import Float
from torch import Tensor


def layout_for(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Return the layout for weights. On a CPU it stays plain, so that results keep their bits."""
    last = device.type == "cuda" and dtype.itemsize == 2
    return torch.channels_last_3d if last else torch.contiguous_format


def layout_of(x: Float[Tensor, "B C T H W"]) -> torch.memory_format:
    """Return how a whole video, or the weights of a convolution, lie in memory."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if last else torch.contiguous_format


def empty_video(shape: torch.Size, *, like: Tensor, layout: torch.memory_format) -> Float[Tensor, "B C T H W"]:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def repeat_edges(
    x: Float[Tensor, "B C T H W"],
    earlier: Float[Tensor, "B C n H W"] | None,
    before: int,
    around: int,
    layout: torch.memory_format,
) -> Float[Tensor, "B C t h w"]:
    """Put `earlier` frames in front, or the first frame `before` times; then repeat pixels at the edge `around` times.

    So does F.pad, whose result is plain on CUDA, so that the convolution would copy it once more. This has `layout`.
    """
    batch, channels, frames, height, width = x.shape
    front = before if earlier is None else earlier.shape[2]
    shape = torch.Size([batch, channels, front + frames, height + 2 * around, width + 2 * around])
    out = empty_video(shape, like=x, layout=layout)
    whole = out if earlier is not None else out[:, :, front:]
    rows = whole[:, :, :, around : around + height]
    inside = rows[..., around : around + width]
    inside[:, :, inside.shape[2] - frames :] = x
    if earlier is not None:
        inside[:, :, :front] = earlier
    rows[..., :around] = rows[..., around : around + 1]
    rows[..., around + width :] = rows[..., around + width - 1 : around + width]
    whole[..., :around, :] = whole[..., around : around + 1, :]
    whole[..., around + height :, :] = whole[..., around + height - 1 : around + height, :]
    if earlier is None:
        out[:, :, :front] = out[:, :, front : front + 1]
    return out
