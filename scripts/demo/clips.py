"""Draw the demo's clips, one coloured shape that moves over a flat background, and write their captions.

Shapes: B clips, C = 3 colours, T frames, H = W = 64 pixels. Pixels are in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIDE = 64
FRAMES = 17
COLOURS = {
    "red": (230, 30, 30),
    "green": (30, 200, 50),
    "blue": (40, 70, 240),
    "yellow": (240, 220, 30),
    "purple": (200, 40, 230),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "down": (0.0, 1.0), "up": (0.0, -1.0)}
BACKGROUND = (40, 40, 44)
DIAMETERS_PX = (22.0, 25.0, 28.0)
SPEEDS_PX = (1.2, 1.6, 2.0)  # pixels per frame: 19 to 32 pixels per clip
MARGIN_PX = 1.0
PROMPT_SUFFIX = ". 24 FPS. 4 motion score."  # what generation adds to a prompt
CAPTIONS = (
    "a {colour} {shape} moving {direction}",
    "{colour} {shape} moving {direction}",
    "a {colour} {shape} moves {direction}",
    "the {colour} {shape} is moving {direction}",
    "a {colour} {shape} moving to the {direction}",
)


@dataclass(frozen=True)
class Combination:
    """Hold what a caption says about a clip."""

    colour: str
    shape: str
    direction: str


def all_combinations() -> tuple[Combination, ...]:
    """Return all 96 combinations of colour, shape and direction."""
    return tuple(Combination(c, s, d) for c in COLOURS for s in SHAPES for d in DIRECTIONS)


def held_out(combination: Combination) -> bool:
    """Return True for the 24 combinations without training; every pair of their words does occur in training."""
    colour = list(COLOURS).index(combination.colour)
    shape = SHAPES.index(combination.shape)
    direction = list(DIRECTIONS).index(combination.direction)
    return (colour + shape + direction) % 4 == 0


TRAINED = tuple(c for c in all_combinations() if not held_out(c))
HELD_OUT = tuple(c for c in all_combinations() if held_out(c))


@dataclass(frozen=True)
class Paths:
    """Hold each clip's path in pixels: centre in the first frame [B, 2], step per frame [B, 2], half width [B]."""

    start: Tensor
    step: Tensor
    radius: Tensor


def draw_paths(combinations: Sequence[Combination], generator: torch.Generator) -> Paths:
    """Draw a size, a speed and a start for every clip, so that the shape stays inside for all FRAMES frames."""
    count = len(combinations)
    sizes = torch.tensor(DIAMETERS_PX)[torch.randint(len(DIAMETERS_PX), (count,), generator=generator)]
    speeds = torch.tensor(SPEEDS_PX)[torch.randint(len(SPEEDS_PX), (count,), generator=generator)]
    radius = sizes / 2
    step = torch.tensor([DIRECTIONS[c.direction] for c in combinations]) * speeds[:, None]
    travel = step * (FRAMES - 1)
    low = radius[:, None] + MARGIN_PX - travel.clamp(max=0)
    high = SIDE - radius[:, None] - MARGIN_PX - travel.clamp(min=0)
    start = low + (high - low) * torch.rand(count, 2, generator=generator)
    return Paths(start, step, radius)


def shape_distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Return the signed distance in pixels, negative inside. x (right) and y (down) start at the centre and broadcast.

    Every shape is 2*radius wide and high. square: a frame with a hole; triangle: points up; cross: a plus.
    """
    if shape == "circle":
        return (x.square() + y.square()).sqrt() - radius
    box = torch.maximum(x.abs(), y.abs())
    if shape == "square":
        thick = 0.42 * radius
        return torch.maximum(box - radius, radius - thick - box)
    if shape == "triangle":
        slope = (2 * x.abs() - y - radius) / 5**0.5
        return torch.maximum(slope, y - radius)
    arm = radius / 3
    return torch.maximum(box - radius, torch.minimum(x.abs(), y.abs()) - arm)


def coverage(shape: str, centre: Tensor, radius: Tensor) -> Tensor:
    """Return how much of each pixel the shape covers: centre [..., 2], radius [...] -> [..., SIDE, SIDE] in [0, 1]."""
    grid = torch.arange(SIDE) + 0.5
    x = grid - centre[..., 0, None, None]
    y = grid[:, None] - centre[..., 1, None, None]
    return (0.5 - shape_distance(shape, x, y, radius[..., None, None])).clamp(0, 1)


def pixels(rgb: Sequence[int]) -> Tensor:
    """Convert an 8-bit colour to [3] in [-1, 1]."""
    return torch.tensor(rgb, dtype=torch.float32) / 127.5 - 1


def render(combinations: Sequence[Combination], paths: Paths, frames: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return clips [B, 3, T, H, W] in [-1, 1] and the shape's coverage [B, 1, T, H, W] at these frame numbers."""
    times = torch.tensor(frames, dtype=torch.float32)
    centre = paths.start[:, None] + paths.step[:, None] * times[:, None]
    cover = torch.stack(
        [coverage(c.shape, centre[i], paths.radius[i].expand(len(times))) for i, c in enumerate(combinations)]
    )[:, None]
    colour = torch.stack([pixels(COLOURS[c.colour]) for c in combinations])[:, :, None, None, None]
    back = pixels(BACKGROUND)[None, :, None, None, None]
    return back + (colour - back) * cover, cover


def pick(pool: Sequence[Combination], count: int, generator: torch.Generator) -> list[Combination]:
    """Draw `count` combinations from the pool."""
    return [pool[i] for i in torch.randint(len(pool), (count,), generator=generator).tolist()]


def caption(combination: Combination, template: int = 0) -> str:
    """Return the combination in words; template 0 is the form of the examples."""
    words = {"colour": combination.colour, "shape": combination.shape, "direction": combination.direction}
    return CAPTIONS[template].format(**words)
