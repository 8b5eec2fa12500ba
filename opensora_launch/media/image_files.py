"""Read an image file as 8-bit RGB, upright. The check before the start and the ranks both read with this.

The module needs Pillow and no torch, because the launcher runs it on a login node.
"""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

# What to do for each value of the EXIF tag; 1 means upright.
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
FULL_16_BIT = 65535
SCALED_FORMATS = ("PNG", "PPM")  # Pillow reads 16 bits of these as 32-bit integers of at most FULL_16_BIT


def read_image(path: str | Path) -> Image.Image:
    """Return the image in mode RGB, turned as its EXIF tag says; 16-bit values are scaled to 8 bits.

    Raises OSError if the file cannot be opened, and ValueError with one line if it cannot be used as an image.
    """
    with open(path, "rb") as file:  # raises the plain reason if the file is missing or may not be read
        try:
            with Image.open(file) as image:
                image.load()
                upright = _in_8_bits(image)
                turn = TURNS.get(_orientation(image))
                return upright if turn is None else upright.transpose(turn)
        except Image.DecompressionBombError as error:
            raise ValueError(f"the image is too large: {error}") from error
        except UnidentifiedImageError as error:  # its text names the open file, not the path
            raise ValueError("not a readable image: cannot identify image file") from error
        except (OSError, SyntaxError, ValueError) as error:  # of Pillow's decoders, for truncated and foreign files
            raise ValueError(f"not a readable image: {error}") from error


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB. Raises ValueError for numbers whose white is not known."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SCALED_FORMATS):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.rint(values * (255 / FULL_16_BIT)).astype(np.uint8)).convert("RGB")
    if image.mode in ("F", "I"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit numbers"
        raise ValueError(f"its pixels are {kind}, whose white is not known; save it with 8 or 16 bits per channel")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF value as a number. Some programs write it as a text; 1 if it is missing or no number."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (TypeError, ValueError, ZeroDivisionError, SyntaxError):
        return 1
