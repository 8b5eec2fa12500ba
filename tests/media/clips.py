"""Make small videos and images for the tests, with FFV1 if the pixels must be exact."""

from pathlib import Path
from typing import Literal

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image


def write_clip(path: Path, frames: UInt8[np.ndarray, "T H W 3"], codec: Literal["ffv1", "libx264"] = "ffv1") -> Path:
    """Write a clip of these frames at 8 fps; ffv1 as bgr0 is lossless."""
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def noise(*shape: int, seed: int = 0) -> UInt8[np.ndarray, "..."]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(path: Path, pixels: UInt8[np.ndarray, "H W 3"], orientation: int = 1) -> Path:
    """Write an image. `orientation` is the EXIF value: 6 means that the camera was held on its side."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path
