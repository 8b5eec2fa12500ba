"""Videos play in browsers, images are exact, and no half-written file has a final name."""

import errno
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from opensora_launch.media import video as video_module
from opensora_launch.media.video import room_for_frames, save_png, save_video, to_frames, to_uint8, video_writer
from tests.media.clips import noise


def smooth_clip(frames: int, height: int, width: int) -> np.ndarray:
    """Make slowly moving colour gradients as frames, [T, H, W, 3]."""
    t = torch.linspace(0, 1, frames)[:, None, None]
    y, x = torch.linspace(-1, 1, height)[None, :, None], torch.linspace(-1, 1, width)[None, None]
    waves = [torch.sin(2 * x + t), torch.sin(y - 2 * t), torch.sin(x * y + 2 * t)]
    return to_frames(torch.stack([0.9 * wave.expand(frames, height, width) for wave in waves]))


def decode(path: Path) -> np.ndarray:
    with av.open(f"file:{path}") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_to_uint8_rounds_half_up_and_clamps():
    steps = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0, 0.5 / 127.5 - 1, 0.499 / 127.5 - 1])
    assert to_uint8(steps[None, None]).flatten().tolist() == [0, 0, 128, 255, 255, 1, 0]
    every = torch.arange(256)
    assert torch.equal(to_uint8((every / 127.5 - 1)[None, None]).flatten(), every.to(torch.uint8))
    # 201/127.5 - 1 in bf16 is 0.578125, which is 201.2: fp32 keeps it, bf16 arithmetic would give 202
    assert to_uint8(torch.tensor([[[0.578125]]], dtype=torch.bfloat16)).item() == 201


def test_a_video_is_h264_yuv420p_at_its_rate_and_looks_right(tmp_path):
    video = smooth_clip(33, 64, 112)
    path = save_video(tmp_path / "0007_2", video, 24)
    assert path == tmp_path / "0007_2.mp4"
    assert os.listdir(tmp_path) == ["0007_2.mp4"]
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
        assert stream.average_rate == 24
        assert (stream.frames, context.width, context.height) == (33, 112, 64)
        assert container.duration == pytest.approx(33 / 24 * 1e6, abs=1e3)
    expected = video.astype(np.float64)
    got = decode(path)
    assert got.shape == expected.shape
    psnr = 10 * math.log10(255**2 / np.mean((got - expected) ** 2))
    assert psnr > 35


def test_the_index_is_in_front_so_that_browsers_start_at_once(tmp_path):
    content = save_video(tmp_path / "a", smooth_clip(5, 32, 48), 24).read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_the_same_frames_make_the_same_file(tmp_path):
    clip = smooth_clip(10, 32, 48)
    assert len({save_video(tmp_path / "a", clip, 24).read_bytes() for _ in range(30)}) == 1


def test_frames_are_the_pixels_in_bytes_and_the_tensor_is_left_alone():
    pixels = torch.linspace(-3, 3, 3 * 2 * 4 * 5).reshape(3, 2, 4, 5)
    before = pixels.clone()
    frames = to_frames(pixels)
    assert frames.shape == (2, 4, 5, 3)
    assert torch.equal(torch.from_numpy(frames), to_uint8(pixels).permute(1, 2, 3, 0))
    assert torch.equal(pixels, before)


def test_many_frames_are_kept_in_an_unnamed_file(tmp_path, monkeypatch):
    """If the folder is full, frames stay in memory. Nothing is left behind in either case."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(video_module, "IN_MEMORY", 9 * 32 * 48 * 3)
    assert type(room_for_frames(9, 32, 48)) is np.ndarray
    room = room_for_frames(10, 32, 48)
    assert type(room) is np.memmap
    assert os.listdir(tmp_path) == []
    room[:] = smooth_clip(10, 32, 48)
    assert save_video(tmp_path / "a", room, 24).read_bytes() == (
        save_video(tmp_path / "b", smooth_clip(10, 32, 48), 24).read_bytes()
    )

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert type(room_for_frames(10, 32, 48)) is np.ndarray


@pytest.mark.parametrize("name", ["a:b", "it's 100% é", "v1.5 %d", "[x]=;y"])
def test_any_name_can_be_written(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    path = save_video(folder / name, smooth_clip(5, 32, 48), 16)
    assert os.listdir(folder) == [f"{name}.mp4"]
    assert decode(path).shape == (5, 32, 48, 3)


def test_one_frame_is_a_png_with_exact_pixels(tmp_path):
    path = save_video(tmp_path / "v1.5", smooth_clip(1, 32, 48), 24)
    assert path == tmp_path / "v1.5.png"
    assert (np.array(Image.open(path)) == smooth_clip(1, 32, 48)[0]).all()
    assert os.listdir(tmp_path) == ["v1.5.png"]


def test_a_failure_leaves_nothing_new_and_the_old_file_whole(tmp_path):
    path = save_video(tmp_path / "a", smooth_clip(5, 32, 48), 24)
    before = path.read_bytes()
    frames = [*noise(60, 32, 48, 3), noise(8, 8, 3)]
    with pytest.raises(AssertionError), video_writer(path, 32, 48, 24) as write:
        deque(map(write, frames), maxlen=0)
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert path.read_bytes() == before


def test_a_killed_writer_leaves_no_final_file(tmp_path):
    code = (
        "import os, sys, numpy as np; from pathlib import Path; from opensora_launch.media.video import video_writer\n"
        "with video_writer(Path(sys.argv[1]), 32, 48, 24) as write:\n"
        "    for i in range(60): write(np.full((32, 48, 3), i, np.uint8))\n"
        "    os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.mp4")], check=False)
    assert done.returncode == 9
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("frames", [1, 60])
def test_a_full_disk_is_named(tmp_path, frames):
    """A file that may not grow stands for a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_video(tmp_path / "a", noise(frames, 32, 48, 3), 24)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in caught.value.filename
    assert os.listdir(tmp_path) == []


def test_a_png_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="CMYK"):
        save_png(tmp_path / "a.png", Image.new("CMYK", (8, 8)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("height", "width", "frame"), [(31, 48, (31, 48, 3)), (32, 48, (48, 32, 3))])
def test_wrong_sizes_are_bugs_of_the_package(tmp_path, height, width, frame):
    with pytest.raises(AssertionError), video_writer(tmp_path / "a.mp4", height, width, 24) as write:
        write(noise(*frame))
    assert os.listdir(tmp_path) == []
