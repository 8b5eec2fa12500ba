"""Judge colour, shape and direction of a clip from its pixels alone, with classical image analysis.

The border gives the background, and the shape is what differs from it. The shape's name is the ideal drawing that
overlaps it most; its direction is the direction in which its centre moves. Anything unclear is "none". A clip of one
frame, an image, has no direction: it is STILL.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from demo import clips

DIFFERENT = 0.35  # RGB distance, in [-1, 1], from which a pixel is not background
SHAPE_QUANTILE = 0.97  # quantile of the pixels: the shape covers at least 6%
MIN_AREA_PX = 60
MIN_OVERLAP = 0.60  # intersection over union with the best ideal drawing, averaged over frames
MAX_COLOUR_DISTANCE = 0.60
MIN_TRAVEL_PX = 8.0
MIN_STRAIGHT = 2.0  # travel along the direction / travel across it
STILL = "still"
MIN_STEADY = 0.75  # share of the quarters of the path that go in its direction


@dataclass(frozen=True)
class Verdict:
    """Hold what the judge saw, and the measurements behind it."""

    colour: str
    shape: str
    direction: str
    overlap: float
    travel_px: float

    def agrees(self, wanted: clips.Combination) -> bool:
        """Return whether all three are as requested; of an image, colour and shape."""
        direction = wanted.direction if self.direction == STILL else self.direction
        return (self.colour, self.shape, direction) == (wanted.colour, wanted.shape, wanted.direction)


def background(frame: Tensor) -> Tensor:
    """Return the median colour [3] of the border of a frame [3, H, W]."""
    border = torch.cat([frame[:, 0], frame[:, -1], frame[:, :, 0], frame[:, :, -1]], dim=1)
    return border.median(dim=1).values


def mask_of(frame: Tensor) -> Tensor:
    """Mark [H, W] the pixels of a frame [3, H, W] that are nearer to the shape's colour than to the background.

    An edge lies half way between the two colours, for any contrast.
    """
    distance = (frame - background(frame)[:, None, None]).norm(dim=0)
    full = float(distance.flatten().quantile(SHAPE_QUANTILE))
    different: Tensor = distance > max(DIFFERENT, full / 2)
    return different


def box_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return centre [2] (x, y) and half extent [] of the mask's bounding box in pixels; 2% may be stray."""
    total = mask.sum().float()
    edges = []
    for counts in (mask.sum(0), mask.sum(1)):
        share = counts.cumsum(0) / total
        low = (share <= 0.01).sum()
        high = (share < 0.99).sum() + 1
        edges.append((low, high))
    (left, right), (top, bottom) = edges
    centre = torch.stack([left + right, top + bottom]) / 2
    return centre, torch.maximum(right - left, bottom - top) / 2


def overlaps(mask: Tensor) -> dict[str, float]:
    """Return the mask's intersection over union with each shape's ideal drawing, the best of a few sizes."""
    centre, half = box_of(mask)
    radii = half + torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    result = {}
    for shape in clips.SHAPES:
        ideal = clips.coverage(shape, centre.expand(len(radii), 2), radii) > 0.5
        both = (ideal & mask).sum((1, 2)).float()
        result[shape] = float((both / (ideal | mask).sum((1, 2))).max())
    return result


def colour_of(frame: Tensor, mask: Tensor) -> Tensor:
    """Return the median colour [3] of the mask's inner pixels, whose four neighbours are also in the mask."""
    inner = mask.clone()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    chosen = inner if inner.any() else mask
    return frame[:, chosen].median(dim=1).values


def nearest_colour(rgb: Tensor) -> str:
    """Return the named colour nearest to rgb [3] in [-1, 1], or none beyond MAX_COLOUR_DISTANCE."""
    distance = {name: float((clips.pixels(value) - rgb).norm()) for name, value in clips.COLOURS.items()}
    best = min(distance, key=lambda name: distance[name])
    return best if distance[best] <= MAX_COLOUR_DISTANCE else "none"


def direction_of(centres: Tensor) -> tuple[str, float]:
    """Return name and length in pixels of the path of the centres [T, 2]."""
    if len(centres) == 1:
        return STILL, 0.0
    edge = max(1, len(centres) // 6)
    way = centres[-edge:].mean(0) - centres[:edge].mean(0)
    axis = int(way.abs().argmax())
    along, across = float(way[axis].abs()), float(way[1 - axis].abs())
    marks = centres[torch.linspace(0, len(centres) - 1, 5).round().long(), axis]
    steady = float(((marks[1:] - marks[:-1]) * way[axis].sign() > 0).float().mean())
    if along < MIN_TRAVEL_PX or along < MIN_STRAIGHT * across or steady < MIN_STEADY:
        return "none", along
    return [["left", "right"], ["up", "down"]][axis][int(way[axis] > 0)], along


def judge(clip: Tensor) -> Verdict:
    """Judge a clip [3, T, H, W] in [-1, 1]. If the shape is missing in any frame, shape and direction are none."""
    masks = [mask_of(frame) for frame in clip.unbind(1)]
    if min(int(mask.sum()) for mask in masks) < MIN_AREA_PX:
        return Verdict("none", "none", "none", 0.0, 0.0)
    scores = [overlaps(mask) for mask in masks]
    mean = {shape: sum(score[shape] for score in scores) / len(scores) for shape in clips.SHAPES}
    best = max(mean, key=lambda name: mean[name])
    colours = torch.stack([colour_of(frame, mask) for frame, mask in zip(clip.unbind(1), masks, strict=True)])
    direction, travel = direction_of(torch.stack([box_of(mask)[0] for mask in masks]))
    shape = best if mean[best] >= MIN_OVERLAP else "none"
    return Verdict(nearest_colour(colours.median(dim=0).values), shape, direction, mean[best], travel)


def psnr(got: Tensor, wanted: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of two images in [-1, 1] (peak 2)."""
    return float(10 * torch.log10(4 / (got - wanted).square().mean().clamp(min=1e-12)))
