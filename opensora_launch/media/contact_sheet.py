"""A contact sheet: frames of a video in one small picture, for lists and as a poster."""

from math import isqrt

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MOST_PER_SIDE = 3
WIDTH_PX = 480


def contact_sheet(frames: UInt8[np.ndarray, "T H W 3"]) -> Image.Image:
    """Return up to nine frames from the first to the last, row by row, in the video's own shape.

    A sheet of as many rows as columns has the shape of one frame, so a player shows it without borders.
    """
    count, height, width, _ = frames.shape
    side = min(MOST_PER_SIDE, isqrt(count))
    scale = min(1.0, WIDTH_PX / (side * width))
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    sheet = Image.new("RGB", (side * tile[0], side * tile[1]))
    for place, frame in enumerate(np.linspace(0, count - 1, side * side).round().astype(int)):
        picture = Image.fromarray(frames[frame]).resize(tile, Image.Resampling.BOX)
        sheet.paste(picture, (place % side * tile[0], place // side * tile[1]))
    return sheet
