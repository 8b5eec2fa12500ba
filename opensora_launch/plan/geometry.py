"""Pixels, frames and tokens of a video, computed as Open-Sora's public code does."""

import math
from dataclasses import dataclass

from opensora_launch.errors import must_be_one_of, must_step
from opensora_launch.plan.networks import TokenGrid
from opensora_launch.schema.autoencoder import VaeConfig, VaeKind
from opensora_launch.schema.config import ModelConfig, VideoConfig

ASPECT_RATIOS = {  # width / height; the other ratios in Open-Sora's table are transposes of these
    "16:9": 16 / 9,
    "9:16": 9 / 16,
    "1:1": 1.0,
    "4:3": 4 / 3,
    "3:2": 3 / 2,
    "2:1": 2.0,
    "5:8": 5 / 8,
    "1.85:1": 1.85,
    "2.39:1": 2.39,
}
TRANSPOSED = {"3:4": "4:3", "2:3": "3:2", "1:2": "2:1", "8:5": "5:8", "1:1.85": "1.85:1", "1:2.39": "2.39:1"}


@dataclass(frozen=True)
class Geometry:
    """Size of one video. The VAE makes the latents; a token is a patch of `patch_size` x `patch_size` latents."""

    height_px: int
    width_px: int
    num_frames: int
    fps: int
    latent_frames: int
    latent_height: int
    latent_width: int
    tokens_per_frame: int
    text_tokens: int

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid(self.latent_frames, self.tokens_per_frame, self.text_tokens)


def pixel_size(resolution: str, aspect_ratio: str, stride_px: int, *, nearest_area: bool = False) -> tuple[int, int]:
    """Return (height, width) from the public size table (opensora/datasets/aspect.py, training=False).

    "<N>px" means an area of N*N pixels, "<N>p" N*N*16/9; both sides are rounded down to a multiple of `stride_px`.
    With `nearest_area` (training=True, the table of images), one side may be a multiple more or less, if that brings
    the area nearer.
    """
    if twin := TRANSPOSED.get(aspect_ratio):
        width, height = pixel_size(resolution, twin, stride_px, nearest_area=nearest_area)
        return height, width
    return _size(resolution, ASPECT_RATIOS[aspect_ratio], stride_px, nearest_area=nearest_area)


def image_size(video: VideoConfig, resolution: str, stride_px: int) -> tuple[int, int]:
    """Return (height, width) of images with that area and the shape of the videos, from the table of images."""
    if video.resolution is not None:
        return pixel_size(resolution, video.aspect_ratio, stride_px, nearest_area=True)
    assert video.height_px and video.width_px, "call geometry_problems() first"
    return _size(resolution, video.width_px / video.height_px, stride_px, nearest_area=True)


def _size(resolution: str, ratio: float, stride_px: int, *, nearest_area: bool) -> tuple[int, int]:
    number = int(resolution.removesuffix("px").removesuffix("p"))
    pixels = number * number * (1.0 if resolution.endswith("px") else 16 / 9)
    width = max(1, math.floor(math.sqrt(pixels * ratio) / stride_px)) * stride_px
    height = max(1, math.floor(pixels / width / stride_px)) * stride_px
    if nearest_area:
        moves = ((0, 0), (-stride_px, 0), (stride_px, 0), (0, -stride_px), (0, stride_px))  # the first of equal ones
        sizes = [(height + down, width + right) for down, right in moves]
        return min((size for size in sizes if min(size)), key=lambda size: abs(size[0] * size[1] - pixels))
    return height, width


def geometry_problems(video: VideoConfig, model: ModelConfig) -> list[str]:
    stride = model.vae.stride_px * model.mmdit.patch_size
    problems = _frame_problems(video.num_frames, model.vae)
    if not 1 <= video.fps <= 240:
        problems.append(f"video.fps={video.fps} must be between 1 and 240")
    sides = {"video.height_px": video.height_px, "video.width_px": video.width_px}
    if video.resolution is not None:
        problems += resolution_problems("video.resolution", video.resolution, stride)
        problems += must_be_one_of("video.aspect_ratio", video.aspect_ratio, [*ASPECT_RATIOS, *TRANSPOSED])
        problems += [
            f"{name}={px} contradicts video.resolution={video.resolution}; use video=custom to set your own size"
            for name, px in sides.items()
            if px is not None
        ]
        return problems
    for name, px in sides.items():
        if px is None:
            problems.append(f"{name} is not set; video=custom needs video.height_px and video.width_px")
        else:
            problems += must_step(name, px, start=stride, step=stride)
    return problems


def _frame_problems(num_frames: int, vae: VaeConfig) -> list[str]:
    if num_frames == 1:
        return []
    if vae.kind is VaeKind.image:
        return [f"video.num_frames={num_frames} must be 1: the model makes images"]
    start = 1 if vae.is_causal else vae.stride_frames
    return must_step("video.num_frames", num_frames, start=start, step=vae.stride_frames)


def resolution_problems(name: str, resolution: str, stride_px: int) -> list[str]:
    """Return a line if `resolution`, the value of a key, is not a size, or one below four steps of `stride_px`."""
    digits = resolution.removesuffix("px").removesuffix("p")
    if digits == resolution or not digits.isascii() or not digits.isdigit():
        return [f"{name}={resolution} is not known; write it as 256px, 768px or 480p"]
    if int(digits) < 4 * stride_px:
        return [f"{name}={resolution} is too small; the smallest is {4 * stride_px}px"]
    return []


def geometry_of(video: VideoConfig, model: ModelConfig) -> Geometry:
    """Compute the geometry of a video that has no `geometry_problems`."""
    vae = model.vae
    stride = vae.stride_px * model.mmdit.patch_size
    if video.resolution is not None:
        is_image = vae.kind is VaeKind.image
        height, width = pixel_size(video.resolution, video.aspect_ratio, stride, nearest_area=is_image)
    else:
        assert video.height_px and video.width_px, "call geometry_problems() first"
        height, width = video.height_px, video.width_px
    return Geometry(
        height_px=height,
        width_px=width,
        num_frames=video.num_frames,
        fps=video.fps,
        latent_frames=(video.num_frames - 1) // vae.stride_frames + 1,
        latent_height=height // vae.stride_px,
        latent_width=width // vae.stride_px,
        tokens_per_frame=(height // stride) * (width // stride),
        text_tokens=model.text.t5_max_length,
    )
