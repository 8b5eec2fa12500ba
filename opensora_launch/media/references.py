"""Load references as tensors: an image or the frames of a video, scaled and cropped to the size of the run.

H, W: pixels of the run's video; T: pixel frames; h, w: pixels of the file. Values are in [-1, 1].
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from opensora_launch.errors import UserError
from opensora_launch.media.image_files import read_image
from opensora_launch.media.prompts import COND_TYPES
from opensora_launch.media.reference_files import VIDEO_SUFFIXES, why_unreadable
from opensora_launch.media.video_frames import ShownFrame, decode_frames, take_frames


def load_references(
    refs: tuple[str, ...], cond_type: str, height: int, width: int, rescaled: tuple[int, int] | None = None
) -> tuple[Float[Tensor, "1 3 T {height} {width}"], ...]:
    """Return the frames that a condition takes from its references, one tensor per part (none for t2v).

    i2v_head takes the first frame of the first reference, i2v_tail the last frame of the last one, i2v_loop both; v2v
    takes the first or last 33 frames (65 for the easy variants). `ReferenceCheck` has checked the files; UserError
    names one that has changed since. `rescaled` is the (height, width) that images first get, without cropping.
    """
    cond = COND_TYPES[cond_type]
    loaded = []
    for part in cond.parts:
        path = refs[part.which]
        try:
            if Path(path).suffix.lower() in VIDEO_SUFFIXES:
                loaded.append(load_video(path, cond.frames, height, width, end=part.end))
            else:
                loaded.append(load_image(path, height, width, rescaled))
        except (OSError, ValueError) as error:
            raise UserError(f"ref {path}: {why_unreadable(path, error)}") from error
    return tuple(loaded)


def load_image(
    path: str | Path, height: int, width: int, rescaled: tuple[int, int] | None = None
) -> Float[Tensor, "1 3 1 {height} {width}"]:
    """Load an image upright, scale it (PIL's bicubic) to fill height x width, crop the centre.

    The arithmetic is Open-Sora's (datasets/utils.py, resize_crop_to_fill): 8-bit values until the step to [-1, 1].
    `rescaled`: a (height, width) to which the image is scaled before that, bilinear, as Open-Sora scales an image that
    it has made (utils/sampling.py, process_and_save).
    """
    image = read_image(path)
    if rescaled:
        image = image.resize(rescaled[::-1], Image.Resampling.BILINEAR)
    (scaled_h, scaled_w), top, left = fill_and_crop((image.height, image.width), (height, width))
    pixels = np.array(image.resize((scaled_w, scaled_h), Image.Resampling.BICUBIC))
    cropped = torch.from_numpy(pixels[top : top + height, left : left + width]).permute(2, 0, 1)
    return _normalise(cropped.float() / 255)[None, :, None]


def load_video(
    path: str | Path, num_frames: int, height: int, width: int, end: Literal["head", "tail"] = "head"
) -> Float[Tensor, "1 3 {num_frames} {height} {width}"]:
    """Load the first or last `num_frames` frames of a video, scale them to fill height x width, crop the centre.

    Frames are taken as they are in the file; the frame rate is not converted. Scaling is bilinear in floating point,
    without antialiasing, as Open-Sora does for videos (datasets/video_transforms.py), but not for images. Raises
    ValueError if there are fewer frames.
    """
    frames = list(take_frames(decode_frames(path), num_frames, end))
    if len(frames) < num_frames:
        raise ValueError(f"{len(frames)} frames, but {num_frames} are needed")
    return torch.stack([_fit_frame(frame, height, width) for frame in frames], dim=1)[None]


def fill_and_crop(size: tuple[int, int], target: tuple[int, int]) -> tuple[tuple[int, int], int, int]:
    """Return the smallest size that covers `target` at the same aspect ratio, and the centred crop's top and left.

    Sizes are (height, width) in pixels. An offset that ends in .5 is rounded to the even number, as `round` does.
    """
    (h, w), (H, W) = size, target
    if H / h > W / w:
        scaled_w = round(w * (H / h))
        return (H, scaled_w), 0, round((scaled_w - W) / 2)
    scaled_h = round(h * (W / w))
    return (scaled_h, W), round((scaled_h - H) / 2), 0


def _fit_frame(frame: ShownFrame, height: int, width: int) -> Float[Tensor, "3 {height} {width}"]:
    pixels = torch.from_numpy(frame.pixels()).permute(2, 0, 1).float() / 255
    scaled, _, _ = fill_and_crop(frame.shown_size(), (height, width))
    fitted = F.interpolate(pixels[None], size=scaled, mode="bilinear", align_corners=False)[0]
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return _normalise(fitted[:, top : top + height, left : left + width])


def _normalise(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Map [0, 1] to [-1, 1]."""
    return (x - 0.5) / 0.5
