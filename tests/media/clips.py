"""Make small videos and images for the tests, with FFV1 if the pixels must be exact."""

import struct
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import UInt8
from PIL import Image


def write_clip(
    path: Path,
    frames: UInt8[np.ndarray, "T H W 3"],
    codec: Literal["ffv1", "libx264"] = "ffv1",
    pixel_aspect: Fraction = Fraction(1),
) -> Path:
    """Write a clip of these frames at 8 fps; ffv1 as bgr0 is lossless. Only libx264 keeps a `pixel_aspect`."""
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.codec_context.sample_aspect_ratio = pixel_aspect
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_grey(path: Path, count: int, skipped: int = 0, *, b_frames: int = 0, cover: bool = False) -> Path:
    """Write an mp4 of grey frames 0, 5, 10, ... from one key frame on, whose edit list skips the first frames.

    A cut without encoding leaves such files. With `cover` it has a picture too; with no frames, it has sound alone.
    """
    with av.open(f"file:{path}", "w", options={"avoid_negative_ts": "disabled"}) as container:
        if cover:
            picture = container.add_stream("mjpeg")
            assert isinstance(picture, av.VideoStream)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
        if count:
            x264 = {"crf": "10", "x264-params": f"bframes={b_frames}:keyint=999:scenecut=0"}
            stream = container.add_stream("libx264", rate=8, options=x264)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for level in (*range(count), None):
                grey = None if level is None else np.full((32, 48, 3), 5 * level, np.uint8)
                frame = None if grey is None else av.VideoFrame.from_ndarray(grey, format="rgb24")
                for packet in stream.encode(frame):
                    early = int(Fraction(skipped, 8) / (packet.time_base or 1))
                    packet.pts, packet.dts = (packet.pts or 0) - early, (packet.dts or 0) - early
                    container.mux(packet)
        else:
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate = 44100
            audio = container.add_stream("aac", rate=44100)
            for each in (sound, None):
                container.mux(audio.encode(each))
        if cover:
            jpeg = BytesIO()
            Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(jpeg, "JPEG")
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = picture, 0, 0, True
            container.mux(packet)
    return path


def edit_clip(path: Path, *shown: tuple[int, int]) -> Path:
    """Replace the edit list of an mp4 by write_grey: show these ranges of frames, [first, stop), one after another."""
    data = bytearray(path.read_bytes())
    units = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big") // 8  # per frame
    entries = b"".join(struct.pack(">IiI", (stop - first) * 125, first * units, 1 << 16) for first, stop in shown)
    place = data.index(b"elst") + 8
    data[place : place + 16] = struct.pack(">I", len(shown)) + entries
    for box in (b"moov", b"trak", b"edts", b"elst"):  # they hold one another, behind the frames
        start = data.index(box) - 4
        size = int.from_bytes(data[start : start + 4], "big") + 12 * (len(shown) - 1)
        data[start : start + 4] = size.to_bytes(4, "big")
    path.write_bytes(data)
    return path


def turn_clip(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix into an mp4: a stored pixel (x, y) is shown at (ax + cy, bx + dy)."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def noise(*shape: int, seed: int = 0) -> UInt8[np.ndarray, "..."]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(path: Path, pixels: UInt8[np.ndarray, "H W 3"], orientation: int = 1) -> Path:
    """Write an image. `orientation` is the EXIF value: 6 means that the camera was held on its side."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path
