"""Unusable references are refused before a GPU is booked, each with its reason."""

import re
from pathlib import Path

import numpy as np
import pytest

from opensora_launch.media.prompts import PromptEntry, PromptSettings
from opensora_launch.media.reference_files import ReferenceFile, check_references, inspect_file
from opensora_launch.media.video import save_video
from tests.media.clips import noise, write_clip, write_image


def entry(*refs: Path | str, cond_type: str | None = None, index: int = 0) -> PromptEntry:
    settings = PromptSettings(cond_type=cond_type)
    return PromptEntry(index, "sea", tuple(str(ref) for ref in refs), settings, f"--prompt {index + 1}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Make image.jpg (40 x 24), turned.jpg (24 x 40), clip33.mkv and clip65.mp4 (33 and 65 frames, 32 x 16)."""
    path: Path = tmp_path_factory.mktemp("it's 100% odd: [a]=;b")
    write_image(path / "image.jpg", noise(24, 40, 3))
    write_image(path / "turned.jpg", noise(24, 40, 3), orientation=6)
    write_clip(path / "clip33.mkv", noise(33, 16, 32, 3))
    write_clip(path / "clip65.mp4", noise(65, 16, 32, 3), codec="libx264")
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image.jpg", ReferenceFile("image", 24, 40, 1)),
        ("turned.jpg", ReferenceFile("image", 40, 24, 1)),
        ("clip33.mkv", ReferenceFile("video", 16, 32, 33)),
        ("clip65.mp4", ReferenceFile("video", 16, 32, 65)),
    ],
)
def test_inspect_file(folder, name, expected):
    assert inspect_file(str(folder / name)) == expected


@pytest.mark.parametrize("cond_type", ["i2v_head", "i2v_tail", "i2v_loop"])
def test_images_and_videos_serve_i2v(folder, cond_type):
    image, clip = folder / "image.jpg", folder / "clip33.mkv"
    entries = [entry(image), entry(clip), entry(image, clip)]
    assert check_references(entries, cond_type, num_frames=5) == []


def test_v2v_wants_one_video_of_enough_frames(folder):
    clip33, clip65 = folder / "clip33.mkv", folder / "clip65.mp4"
    assert check_references([entry(clip33), entry(clip65)], "v2v_tail", num_frames=33) == []
    assert check_references([entry(clip65)], "v2v_head_easy", num_frames=65) == []
    assert check_references([entry(clip33)], "v2v_head_easy", num_frames=65) == [
        f"--prompt 1: ref {clip33}: 33 frames; cond_type=v2v_head_easy needs at least 65"
    ]
    assert check_references([entry(folder / "image.jpg", clip33)], "v2v_head", num_frames=29) == [
        "--prompt 1: cond_type=v2v_head takes at most 1 reference, not 2",
        "--prompt 1: cond_type=v2v_head needs a video.num_frames of at least 33, not 29",
        f"--prompt 1: ref {folder / 'image.jpg'}: cond_type=v2v_head needs a video, but this is an image",
    ]


def test_a_prompts_own_cond_type_counts(folder):
    missing = folder / "missing.png"
    assert check_references([entry(missing, cond_type="t2v"), entry()], None, num_frames=129) == []
    assert check_references([entry(missing)], "t2v", num_frames=1) == []
    assert check_references([entry(missing)], "v2v_half", num_frames=1) == []  # check_cond_type reports it
    assert check_references([entry(cond_type="i2v_tail")], "t2v", num_frames=129) == [
        "--prompt 1: cond_type=i2v_tail needs a reference; give one with --ref or in the column 'ref', or use t2v"
    ]


def test_an_image_cannot_be_conditioned(folder):
    assert check_references([entry(folder / "image.jpg")], None, num_frames=1) == [
        "--prompt 1: cond_type=i2v_head needs a video.num_frames of at least 5, not 1"
    ]


def test_the_same_problem_of_many_prompts_is_reported_once(folder):
    entries = [entry(folder / "a,b.png", index=i) for i in range(3)]
    assert check_references(entries, None, num_frames=129) == [
        f"--prompt 1 and 2 more: ref {folder / 'a,b.png'}: no such file; separate two references by ';', not ','"
    ]


def torn(path: Path, whole: Path) -> Path:
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


def test_a_truncated_video_does_not_have_the_frames_its_header_promises(tmp_path):
    path = torn(tmp_path / "torn.mp4", save_video(tmp_path / "whole", noise(65, 32, 32, 3), 24))
    (line,) = check_references([entry(path)], "v2v_tail_easy", num_frames=129)
    assert re.fullmatch(r".* [1-4]\d frames; cond_type=v2v_tail_easy needs at least 65", line)


def test_every_unreadable_file_gets_its_reason(folder, tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.jpg").write_bytes(b"")
    write_image(tmp_path / "icon.png", np.zeros((15, 40, 3), np.uint8))
    write_image(tmp_path / "whole.jpg", noise(96, 160, 3))
    write_image(tmp_path / "whole.png", noise(96, 160, 3))
    expected = {
        tmp_path / "folder.png": "cannot be read: Is a directory",
        tmp_path / "text.png": "not a readable image: cannot identify image file",
        tmp_path / "text.mp4": "not a readable video: Invalid data found when processing input",
        tmp_path / "empty.jpg": "not a readable image: cannot identify image file",
        tmp_path / "icon.png": "40 x 15 pixels; each side needs at least 16",
        tmp_path / "list.csv": "its name is not that of an image or video; the allowed endings are .bmp, ",
        torn(tmp_path / "torn.jpg", tmp_path / "whole.jpg"): "not a readable image: image file is truncated",
        torn(tmp_path / "torn.png", tmp_path / "whole.png"): "not a readable image: image file is truncated",
        torn(tmp_path / "torn.mp4", folder / "clip65.mp4"): "not a readable video: Invalid data found",
    }
    found = check_references([entry(path) for path in expected], None, num_frames=129)
    assert len(found) == len(expected)
    for line, (path, reason) in zip(found, expected.items(), strict=True):
        assert line.startswith(f"--prompt 1: ref {path}: {reason}")
