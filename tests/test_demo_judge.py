"""The judge of the demo's clips, on true clips and on wrong ones."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from demo import clips, judge


def drawn(combos, seed=0, frames=range(clips.FRAMES)):
    paths = clips.draw_paths(combos, torch.Generator().manual_seed(seed))
    return clips.render(combos, paths, frames)


@pytest.mark.parametrize("noise", [0.0, 0.04])
def test_true_clips_are_judged_right(noise):
    combos = clips.all_combinations()
    clip, _ = drawn(combos)
    torch.manual_seed(1)
    verdicts = [judge.judge(c + noise * torch.randn_like(c)) for c in clip]
    right = sum(v.agrees(c) for v, c in zip(verdicts, combos, strict=True))
    assert right / len(combos) >= 0.99
    assert min(v.overlap for v in verdicts) > 0.75


def test_shapes_stay_inside_and_are_at_least_20_pixels_across():
    combos = clips.all_combinations()
    _, cover = drawn(combos, seed=3)
    border = torch.cat([cover[..., 0, :], cover[..., -1, :], cover[..., 0], cover[..., -1]], dim=-1)
    assert float(border.max()) < 0.2  # a triangle's sharp corners come a fraction of a pixel further
    wide = (cover > 0.5).any(dim=3).sum(dim=3)
    assert int(wide.min()) >= 20


def test_what_is_unclear_is_none():
    combo = clips.Combination("red", "circle", "right")
    (clip,), _ = drawn([combo])
    assert judge.judge(clip).agrees(combo)
    still = clip[:, :1].expand(-1, clips.FRAMES, -1, -1)
    assert judge.judge(still).direction == "none"
    assert judge.judge(clip.flip(1)).direction == "left"
    assert judge.judge(torch.full_like(clip, -0.7)).shape == "none"
    gone = clip.clone()
    gone[:, 8] = clips.pixels(clips.BACKGROUND)[:, None, None]
    assert judge.judge(gone).shape == "none"
    grey = clip.mean(dim=0, keepdim=True).expand_as(clip)
    assert judge.judge(grey).colour == "none"


def test_a_bar_is_no_shape():
    clip = clips.pixels(clips.BACKGROUND)[:, None, None, None].repeat(1, clips.FRAMES, clips.SIDE, clips.SIDE)
    for frame in range(clips.FRAMES):
        clip[:, frame, 20 + frame : 30 + frame, 10:50] = clips.pixels(clips.COLOURS["blue"])[:, None, None]
    assert judge.judge(clip) == judge.Verdict("blue", "none", "down", judge.judge(clip).overlap, 15.0)


def test_held_out_combinations_leave_every_pair_of_words_in_training():
    assert len(clips.HELD_OUT) == 24
    assert len(clips.TRAINED) == 72
    for first, second in (("colour", "shape"), ("colour", "direction"), ("shape", "direction")):
        pairs = {(getattr(c, first), getattr(c, second)) for c in clips.all_combinations()}
        assert {(getattr(c, first), getattr(c, second)) for c in clips.TRAINED} == pairs


def test_psnr_of_a_known_error():
    image = torch.zeros(3, 8, 8)
    assert judge.psnr(image + 0.2, image) == pytest.approx(20.0, abs=1e-4)
