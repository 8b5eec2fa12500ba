"""References become tensors with the public implementation's arithmetic, computed here by hand."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from safetensors import safe_open
from torch.nn import functional as F

from opensora_launch.errors import UserError
from opensora_launch.media.image_files import read_image
from opensora_launch.media.prompts import COND_TYPES
from opensora_launch.media.references import fill_and_crop, load_image, load_references, load_video
from opensora_launch.media.video_frames import decode_frames
from tests.media.clips import noise, turn_clip, write_clip, write_image

REFERENCE = Path(__file__).parent.parent / "reference"

CASES = Path(__file__).parents[1] / "cases"
TEXT, BYTES, FLOAT = 2, 7, 11  # types of values in EXIF


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((24, 40), (16, 32), ((19, 32), 2, 0)),  # 24*0.8=19.2; (19-16)/2=1.5 rounds to the even 2
        ((10, 41), (16, 32), ((16, 66), 0, 17)),
        ((10, 40), (20, 77), ((20, 80), 0, 2)),  # 1.5 to 2
        ((10, 40), (20, 75), ((20, 80), 0, 2)),  # 2.5 to 2
        ((16, 32), (16, 32), ((16, 32), 0, 0)),
        ((300, 200), (160, 96), ((160, 107), 0, 6)),  # 5.5 to 6
    ],
)
def test_fill_and_crop(size, target, expected):
    assert fill_and_crop(size, target) == expected


def test_no_size_leaves_the_target_uncovered():
    for h in range(16, 120, 7):
        for w in range(16, 120, 5):
            (scaled_h, scaled_w), top, left = fill_and_crop((h, w), (48, 80))
            assert (scaled_h == 48 and scaled_w >= 80) or (scaled_w == 80 and scaled_h >= 48)
            assert 0 <= top <= scaled_h - 48
            assert 0 <= left <= scaled_w - 80


def test_an_image_of_the_right_size_is_only_normalised(tmp_path):
    pixels = noise(16, 32, 3)
    got = load_image(write_image(tmp_path / "a.png", pixels), 16, 32)
    assert got.shape == (1, 3, 1, 16, 32)
    assert got.dtype == torch.float32
    expected = torch.from_numpy(pixels.astype(np.float64) / 127.5 - 1).permute(2, 0, 1)
    torch.testing.assert_close(got[0, :, 0].double(), expected, atol=2e-7, rtol=0)


def test_an_image_is_scaled_by_pils_bicubic_and_cropped(tmp_path):
    pixels = noise(24, 40, 3)
    got = load_image(write_image(tmp_path / "a.png", pixels), 16, 32)
    scaled = np.array(Image.fromarray(pixels).resize((32, 19), Image.Resampling.BICUBIC))
    assert (np.rint((got[0, :, 0].permute(1, 2, 0).numpy() + 1) * 127.5) == scaled[2:18]).all()


def test_an_image_is_turned_upright(tmp_path):
    pixels = noise(16, 32, 3)
    got = load_image(write_image(tmp_path / "a.png", pixels, orientation=6), 32, 16)
    upright = load_image(write_image(tmp_path / "b.png", np.rot90(pixels, -1)), 32, 16)
    assert torch.equal(got, upright)


def test_grey_and_transparent_images_become_rgb(tmp_path):
    Image.fromarray(noise(16, 16)).save(tmp_path / "grey.png")
    Image.fromarray(noise(16, 16, 4)).save(tmp_path / "alpha.png")
    grey, alpha = load_image(tmp_path / "grey.png", 16, 16), load_image(tmp_path / "alpha.png", 16, 16)
    assert torch.equal(grey[:, 0], grey[:, 2])
    expected = torch.from_numpy(noise(16, 16, 4)[..., :3].astype(np.float32)) / 127.5 - 1
    torch.testing.assert_close(alpha[0, :, 0].permute(1, 2, 0), expected, atol=2e-7, rtol=0)


def test_16_bits_are_scaled_to_8(tmp_path):
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name, wide in (("a.png", np.uint16), ("a.tif", np.uint16), ("a.pgm", np.uint16)):
        Image.fromarray(eight.astype(wide) * 257).save(tmp_path / name)
        assert (np.array(read_image(tmp_path / name)) == eight[..., None]).all(), name


def test_an_orientation_of_another_type_is_no_traceback(tmp_path):
    """Text that is a number counts as the number; other text means upright."""
    upright = read_image(CASES / "mark.png")
    assert read_image(CASES / "exif_ascii.jpg").size == (64, 96)
    for kind, count, value, size in (
        (TEXT, 2, b"6\0\0\0", (64, 96)),
        (TEXT, 4, b"top\0", (96, 64)),
        (BYTES, 1, b"\6\0\0\0", (96, 64)),
        (FLOAT, 1, struct.pack(">f", 6), (64, 96)),
    ):
        entry = struct.pack(">HHI", ExifTags.Base.Orientation, kind, count) + value
        exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
        upright.save(tmp_path / "a.jpg", exif=exif)
        assert read_image(tmp_path / "a.jpg").size == size, (kind, value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows(tmp_path, orientation):
    path = write_image(tmp_path / "a.png", noise(16, 32, 3), orientation=orientation)
    with Image.open(path) as image:
        assert (np.array(read_image(path)) == np.array(ImageOps.exif_transpose(image))).all()


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),  # a phone held upright
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda x: np.rot90(x, 2).swapaxes(0, 1)),
        ((1, 0, 0, 1), lambda x: x),
    ],
)
def test_a_video_is_turned_by_its_display_matrix(tmp_path, matrix, turn):
    path = write_clip(tmp_path / "a.mp4", noise(2, 16, 32, 3), codec="libx264")
    before = [frame.pixels() for frame in decode_frames(path)]
    turn_clip(path, matrix)
    after = list(decode_frames(path))
    assert [frame.shown_size() for frame in after] == [turn(before[0]).shape[:2]] * 2
    for frame, pixels in zip(after, before, strict=True):
        assert (frame.pixels() == turn(pixels)).all()


def test_pixels_of_a_video_need_not_be_square(tmp_path):
    """They are scaled once, from the stored size to that of the run."""
    path = write_clip(tmp_path / "a.mp4", noise(1, 16, 32, 3), "libx264", pixel_aspect=Fraction(3, 2))
    (frame,) = decode_frames(path)
    assert frame.shown_size() == (16, 48)
    unit = torch.from_numpy(frame.pixels()).permute(2, 0, 1)[None].double() / 255
    scaled = F.interpolate(unit, size=(16, 48), mode="bilinear")[..., 8:40]
    torch.testing.assert_close(load_video(path, 1, 16, 32)[0, :, 0].double(), scaled[0] * 2 - 1, atol=5e-6, rtol=0)
    turn_clip(path, (0, 1, -1, 0))
    assert next(decode_frames(path)).shown_size() == (48, 16)


def test_a_file_that_changed_since_the_check_is_named(tmp_path):
    for name, cond_type, reason in (
        ("damaged.mp4", "v2v_head", "not a readable video: Invalid data found when processing input, after 18 frames"),
        ("latin.mp4", "v2v_head_easy", "48 frames, but 65 are needed"),
        ("gone.png", "i2v_head", "no such file"),
    ):
        with pytest.raises(UserError) as caught:
            load_references((str(CASES / name),), cond_type, 16, 32)
        assert str(caught.value) == f"ref {CASES / name}: {reason}"


def as_video(frames):
    return torch.from_numpy(frames.astype(np.float64) / 127.5 - 1).permute(3, 0, 1, 2)[None]


def test_head_and_tail_of_a_video(tmp_path):
    frames = noise(12, 16, 32, 3)
    path = write_clip(tmp_path / "a.mkv", frames)
    head, tail = load_video(path, 5, 16, 32), load_video(path, 5, 16, 32, end="tail")
    assert head.shape == (1, 3, 5, 16, 32)
    torch.testing.assert_close(head.double(), as_video(frames[:5]), atol=2e-7, rtol=0)
    torch.testing.assert_close(tail.double(), as_video(frames[-5:]), atol=2e-7, rtol=0)


def test_a_video_is_scaled_bilinearly_and_cropped(tmp_path):
    frames = noise(2, 24, 40, 3)
    got = load_video(write_clip(tmp_path / "a.mkv", frames), 2, 16, 32)
    unit = torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255
    scaled = F.interpolate(unit, size=(19, 32), mode="bilinear", align_corners=False)[:, :, 1:17]
    torch.testing.assert_close(got[0].double(), scaled.permute(1, 0, 2, 3) * 2 - 1, atol=5e-6, rtol=0)


def test_each_condition_takes_its_frames(tmp_path):
    first, last = noise(66, 16, 16, 3, seed=1), noise(70, 16, 16, 3, seed=2)
    image = write_image(tmp_path / "a.png", noise(16, 16, 3, seed=3))
    refs = (str(write_clip(tmp_path / "a.mkv", first)), str(write_clip(tmp_path / "b.avi", last)))
    expected = {
        "t2v": [],
        "i2v_head": [first[:1]],
        "i2v_tail": [last[-1:]],
        "i2v_loop": [first[:1], last[-1:]],
        "v2v_head": [first[:33]],
        "v2v_tail": [last[-33:]],
        "v2v_head_easy": [first[:65]],
        "v2v_tail_easy": [last[-65:]],
    }
    assert expected.keys() == COND_TYPES.keys()
    for cond_type, parts in expected.items():
        got = load_references(refs, cond_type, 16, 16)
        assert len(got) == len(parts)
        for tensor, frames in zip(got, parts, strict=True):
            torch.testing.assert_close(tensor.double(), as_video(frames), atol=2e-7, rtol=0)
    both = load_references((str(image),), "i2v_loop", 16, 16)
    assert torch.equal(both[0], both[1])
    assert torch.equal(both[0], load_image(image, 16, 16))


def test_an_image_that_was_made_is_read_back_as_by_the_reference(tmp_path):
    """Rescaled bilinearly to the size of the video, in 8 bits, and then as any other reference."""
    with safe_open(REFERENCE / "t2i2v.safetensors", "pt") as case:
        made, resized, pixels = (case.get_tensor(name) for name in ("image", "image_resized", "ref_pixels.0"))
    Image.fromarray(made.numpy()).save(tmp_path / "made.png")
    height, width, _ = resized.shape
    (got,) = load_references((str(tmp_path / "made.png"),), "i2v_head", height, width, (height, width))
    torch.testing.assert_close(got, pixels, rtol=0, atol=1e-6)
