"""References become tensors with the public implementation's arithmetic, computed here by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from opensora_launch.media.prompts import COND_TYPES
from opensora_launch.media.references import fill_and_crop, load_image, load_references, load_video
from tests.media.clips import noise, write_clip, write_image


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
