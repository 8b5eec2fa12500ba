"""Write finished videos and images. A file appears under its name only when it is complete.

T: frames; H, W: pixels. Values of a decoded video are in [-1, 1].
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import Float, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from opensora_launch.rundir import aside

# The same frames must give the same file. x264's choices depend on the number of threads. Its macroblock tree differs
# between runs even with one thread (seen in 10 to 40% of runs on clips of 48 x 32, in its vectorised code).
ENCODER_THREADS = 4
X264 = {"crf": "23", "x264-params": "mbtree=0"}
MP4 = {"movflags": "+faststart"}
IN_MEMORY = 256 * 2**20  # bytes of decoded frames that are kept in memory; a larger video is kept on disk
NO_TEXTS: Mapping[str, str] = MappingProxyType({})
BT709 = 1  # code in the tables of primaries and transfer curves of ITU-T H.273


def to_uint8(video: Float[Tensor, "... H W"]) -> UInt8[Tensor, "... H W"]:
    """Map [-1, 1] to 0..255: clamp, then round half up, in fp32 (Open-Sora's datasets/utils.py, save_sample)."""
    unit = (video.float().clamp(-1, 1) + 1) / 2
    return (unit * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def to_frames(video: Float[Tensor, "3 T H W"]) -> UInt8[np.ndarray, "T H W 3"]:
    """Convert pixels in [-1, 1] on any device to 8-bit frames in memory."""
    frames: UInt8[np.ndarray, "T H W 3"] = to_uint8(video).permute(1, 2, 3, 0).contiguous().cpu().numpy()
    return frames


def room_for_frames(frames: int, height: int, width: int) -> UInt8[np.ndarray, "T H W 3"]:
    """Make an array for the decoded frames until the video is complete: in an unnamed file if there are many.

    The file vanishes with the process. If the temporary folder ($TMPDIR) has no room, the array is in memory.
    """
    shape = (frames, height, width, 3)
    nbytes = frames * height * width * 3
    if nbytes > IN_MEMORY:
        with tempfile.TemporaryFile() as file:
            try:
                os.posix_fallocate(file.fileno(), 0, nbytes)
                return np.memmap(file, np.uint8, "r+", shape=shape)
            except OSError:
                pass
    return np.empty(shape, np.uint8)


def save_video(
    path_without_suffix: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: int, about: Mapping[str, str] = NO_TEXTS
) -> Path:
    """Write an mp4, or a PNG if there is one frame, and return the path with its suffix.

    Height and width must be even; `fps` is in frames per second. `about` goes into the file: of an mp4, players show
    `title`, `comment` and `description`.
    """
    count, height, width, _ = frames.shape
    assert count > 0, "a video without frames"
    path = path_without_suffix.with_name(path_without_suffix.name + (".png" if count == 1 else ".mp4"))
    if count == 1:
        save_png(path, Image.fromarray(frames[0]), about)
        return path
    with video_writer(path, height, width, fps, about) as write:
        for frame in frames:
            write(frame)
    return path


def save_png(path: Path, image: Image.Image, about: Mapping[str, str] = NO_TEXTS) -> None:
    """Write an image, with `about` as text chunks, whose names begin with a capital letter in PNG."""
    texts = PngInfo()
    for name, text in _storable(about).items():
        texts.add_itxt(name.capitalize(), text)
    with aside(path) as beside:
        image.save(beside, format="PNG", pnginfo=texts)


def _storable(about: Mapping[str, str]) -> dict[str, str]:
    """Replace what no file can hold: NUL, and halves of surrogate pairs."""
    return {name: text.replace("\0", " ").encode("utf-8", "replace").decode() for name, text in about.items()}


@contextmanager
def video_writer(
    path: Path, height: int, width: int, fps: int, about: Mapping[str, str] = NO_TEXTS
) -> Iterator[Callable[[UInt8[np.ndarray, "H W 3"]], None]]:
    """Write an mp4 that browsers play: H.264, yuv420p, crf 23, BT.709, the index in front of the frames.

    Yields a function that appends one RGB frame. The file appears when the block ends without an exception; otherwise
    an existing one stays as it was.
    """
    assert height % 2 == width % 2 == 0, f"yuv420p needs even sides, not {width} x {height}"
    shape = (height, width, 3)
    with aside(path) as beside, av.open(f"file:{beside}", "w", format="mp4", options=MP4) as container:
        container.metadata.update(_storable(about))
        stream = container.add_stream("libx264", rate=Fraction(fps), options=X264)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.thread_count = ENCODER_THREADS
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries = context.color_trc = BT709

        def write(frame: UInt8[np.ndarray, "H W 3"]) -> None:
            assert frame.shape == shape, f"got a frame of shape {frame.shape} for a video of {shape}"
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(picture))

        yield write
        container.mux(stream.encode(None))
