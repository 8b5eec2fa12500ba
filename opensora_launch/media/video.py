"""Finished videos and images on disk. A file appears under its name only when it is whole.

T: frames; H, W: pixels. Values of a decoded video are in [-1, 1].
"""

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

ENCODER_THREADS = 4  # fixed: x264's choices depend on it, and the same frames shall make the same file anywhere
BT709 = 1  # in the tables of primaries and transfer curves of ITU-T H.273


def to_uint8(video: Float[Tensor, "... H W"]) -> UInt8[Tensor, "... H W"]:
    """[-1, 1] to 0..255: clamped, then rounded half up, in fp32 (Open-Sora's datasets/utils.py, save_sample)."""
    unit = (video.float().clamp(-1, 1) + 1) / 2
    return (unit * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def save_video(path_without_suffix: Path, video: Float[Tensor, "3 T H W"], fps: int) -> Path:
    """Write an mp4, or a PNG where there is one frame; the path with its suffix is returned.

    Values outside [-1, 1] are clamped. Heights and widths are even, `fps` is in frames a second.
    """
    _, frames, height, width = video.shape
    assert frames > 0, "a video without frames"
    if frames == 1:
        path = path_without_suffix.with_name(path_without_suffix.name + ".png")
        save_png(path, _to_frame(video[:, 0]))
        return path
    path = path_without_suffix.with_name(path_without_suffix.name + ".mp4")
    with VideoWriter(path, height, width, fps) as writer:
        for t in range(frames):  # one frame at a time: a second copy of a long video may not fit in memory
            writer.write(_to_frame(video[:, t]))
    return path


def save_png(path: Path, frame: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write one RGB frame."""
    aside = _aside(path)
    try:
        Image.fromarray(frame).save(aside, format="PNG")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


class VideoWriter:
    """An mp4 that browsers play: H.264, yuv420p, crf 23, BT.709, its index in front of the frames.

    Frames are streamed in. The file is written beside its name and renamed when the block ends well; when it ends by an
    exception, nothing is left and a file that was there before stays.
    """

    def __init__(self, path: Path, height: int, width: int, fps: int) -> None:
        assert height % 2 == width % 2 == 0, f"yuv420p needs even sides, not {width} x {height}"
        self._path, self._aside, self._shape = path, _aside(path), (height, width, 3)
        self._container = av.open(f"file:{self._aside}", "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps), options={"crf": "23"})
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        context = self._stream.codec_context
        context.thread_count = ENCODER_THREADS
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries = context.color_trc = BT709

    def write(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        """Append one RGB frame."""
        assert frame.shape == self._shape, f"{frame.shape} in a video of {self._shape}"
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None:
                os.replace(self._aside, self._path)
        finally:
            self._aside.unlink(missing_ok=True)


def _to_frame(image: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    frame: UInt8[np.ndarray, "H W 3"] = to_uint8(image).permute(1, 2, 0).contiguous().cpu().numpy()
    return frame


def _aside(path: Path) -> Path:
    """Where a file grows until it is whole: beside its name, hidden, of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")
