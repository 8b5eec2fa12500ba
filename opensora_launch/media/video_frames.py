"""Decode the frames of a video file. The check before the start and the ranks both read with this.

The module needs PyAV and no torch, because the launcher runs it on a login node. h, w: pixels of the file as stored;
H, W: as shown, with square pixels and upright.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.stream import Disposition
from jaxtyping import UInt8


@dataclass(frozen=True)
class ShownFrame:
    """A decoded frame, and how a player shows it. `pixel_aspect` is width by height of a stored pixel."""

    stored: av.VideoFrame
    pixel_aspect: float

    def pixels(self) -> UInt8[np.ndarray, "_ _ 3"]:
        """Return the stored pixels as RGB, turned and mirrored as the file's display matrix says."""
        pixels = self.stored.to_ndarray(format="rgb24")
        swapped, mirrored_x, mirrored_y = self._turn()
        pixels = pixels.swapaxes(0, 1) if swapped else pixels
        return np.ascontiguousarray(pixels[:: -1 if mirrored_y else 1, :: -1 if mirrored_x else 1])

    def shown_size(self) -> tuple[int, int]:
        """Return (H, W): the file may store pixels that are not square."""
        height, width = self.stored.height, max(1, round(self.stored.width * self.pixel_aspect))
        return (width, height) if self._turn()[0] else (height, width)

    def _turn(self) -> tuple[bool, bool, bool]:
        """Whether x and y are swapped, and x and y then mirrored; the nearest quarter turn of any other rotation.

        The matrix is (a b u, c d v, x y w) in row order, as in MP4: a stored pixel (x, y) is shown at
        (ax + cy, bx + dy).
        """
        data = cast(SideDataContainer, self.stored.side_data).get(Type.DISPLAYMATRIX)  # PyAV's stub has another type
        if data is None:
            return False, False, False
        a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), np.int32)[:5])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return False, a < 0, d < 0
        return True, c < 0, b < 0


def decode_frames(path: str | Path) -> Iterator[ShownFrame]:
    """Yield every frame that a player shows, in order.

    Raises OSError if the file cannot be opened, and ValueError with one line if it cannot be decoded to its end.
    """
    with open(path, "rb"):  # raises the plain reason if the file is missing or may not be read
        pass
    count = 0
    try:
        with av.open(f"file:{path}", metadata_errors="ignore") as container:
            stream = container.streams.best("video")  # a cover picture only if there is nothing else
            if not isinstance(stream, av.VideoStream):
                raise ValueError("it has no video stream")
            if stream.disposition & Disposition.attached_pic:
                raise ValueError("it has no video stream, only a cover picture")
            aspect = float(stream.sample_aspect_ratio or 1)
            decoded: Iterator[av.VideoFrame] = container.decode(stream)
            for frame in decoded:
                count += 1
                yield ShownFrame(frame, aspect)
    except av.FFmpegError as error:
        place = f", after {count} frame{'s' * (count != 1)}" if count else ""
        raise ValueError(f"not a readable video: {error.strerror}{place}") from error
    if not count:
        raise ValueError("not a readable video: no frame could be decoded")


def take_frames(frames: Iterable[ShownFrame], count: int, end: Literal["head", "tail"]) -> Iterable[ShownFrame]:
    """Return the first or last `count` frames, fewer if there are fewer. Only a tail decodes the whole file."""
    return islice(frames, count) if end == "head" else deque(frames, maxlen=count)
