"""Unusable references are refused before a GPU is booked, each with its reason."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from opensora_launch.errors import Problems
from opensora_launch.media.prompts import PromptEntry, PromptSettings, cond_type_of
from opensora_launch.media.reference_files import ReferenceCheck, ReferenceFile, inspect_file
from opensora_launch.media.video_frames import decode_frames, take_frames
from tests.media.clips import edit_clip, noise, write_clip, write_grey, write_image

CASES = Path(__file__).parents[1] / "cases"


def entry(*refs: Path | str, cond_type: str | None = None, index: int = 0) -> PromptEntry:
    settings = PromptSettings(cond_type=cond_type)
    return PromptEntry(index, "sea", tuple(str(ref) for ref in refs), settings, f"--prompt {index + 1}")


def check_references(entries: list[PromptEntry], cond_type: str | None, num_frames: int) -> list[str]:
    check, problems = ReferenceCheck(num_frames), Problems()
    for one in entries:
        for line in check.problems(one.refs, cond_type_of(one, cond_type)):
            problems.add_at(one.source, line)
    return problems.lines


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
    assert inspect_file(str(folder / name), 99, "tail") == expected


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


def test_what_a_condition_takes_is_decoded():
    """Containers promise more than they hold, and damage may begin after the first frame."""
    broken = "Invalid data found when processing input"
    refused = {
        ("damaged.mp4", "v2v_head"): f"not a readable video: {broken}, after 18 frames",
        ("damaged.mp4", "i2v_tail"): f"not a readable video: {broken}, after 18 frames",
        ("torn_fast.mp4", "i2v_tail"): f"not a readable video: {broken}, after 27 frames",
        ("vp8b.webm", "v2v_tail_easy"): "60 frames; cond_type=v2v_tail_easy needs at least 65",
        ("latin.mp4", "v2v_head_easy"): "48 frames; cond_type=v2v_head_easy needs at least 65",
    }
    fine = [("damaged.mp4", "i2v_head"), ("torn_fast.mp4", "i2v_head"), ("vp8b.webm", "v2v_tail")]
    fine += [("latin.mp4", "v2v_tail"), ("exif_ascii.jpg", "i2v_loop"), ("mark.png", "i2v_head")]
    for (name, cond_type), reason in refused.items():
        path = CASES / name
        assert check_references([entry(path)], cond_type, num_frames=129) == [f"--prompt 1: ref {path}: {reason}"]
    for name, cond_type in fine:
        assert check_references([entry(CASES / name)], cond_type, num_frames=129) == []


def greys(path: Path, count: int, end: Literal["head", "tail"]) -> list[int]:
    """The numbers of the frames of write_grey that a condition takes."""
    taken = take_frames(decode_frames(path), count, end)
    return [round(float(frame.pixels().mean()) / 5) for frame in taken]


@pytest.mark.parametrize("b_frames", [0, 2])
def test_an_edit_list_hides_frames(tmp_path, b_frames):
    """As a cut without encoding leaves it: what is hidden is neither counted nor taken."""
    cut = write_grey(tmp_path / "cut.mp4", 24, skipped=8, b_frames=b_frames)
    assert inspect_file(str(cut), 99, "tail").frames == 16
    assert (greys(cut, 3, "head"), greys(cut, 3, "tail")) == ([8, 9, 10], [21, 22, 23])
    edit_clip(cut, (8 + b_frames, 16 + b_frames))  # media's time begins with decoding, so many frames before showing
    assert (greys(cut, 3, "head"), greys(cut, 3, "tail")) == ([8, 9, 10], [13, 14, 15])


def test_an_edit_list_of_several_parts(tmp_path):
    clip = edit_clip(write_grey(tmp_path / "two.mp4", 24), (4, 8), (16, 20))
    assert greys(clip, 99, "tail") == [4, 5, 6, 7, 16, 17, 18, 19]
    short = edit_clip(write_grey(tmp_path / "short.mp4", 48), (0, 24))
    assert check_references([entry(short)], "v2v_head", num_frames=129) == [
        f"--prompt 1: ref {short}: 24 frames; cond_type=v2v_head needs at least 33"
    ]


def test_a_cover_picture_is_no_video(tmp_path):
    film = write_grey(tmp_path / "film.mp4", 8, cover=True)
    assert inspect_file(str(film), 99, "tail") == ReferenceFile("video", 32, 48, 8)
    assert greys(film, 99, "head") == list(range(8))
    song = write_grey(tmp_path / "song.mp4", 0, cover=True)
    assert check_references([entry(song)], None, num_frames=129) == [
        f"--prompt 1: ref {song}: it has no video stream, only a cover picture"
    ]


def test_every_unreadable_file_gets_its_reason(folder, tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.jpg").write_bytes(b"")
    write_image(tmp_path / "icon.png", np.zeros((15, 40, 3), np.uint8))
    write_image(tmp_path / "whole.jpg", noise(96, 160, 3))
    write_image(tmp_path / "whole.png", noise(96, 160, 3))
    Image.fromarray(np.zeros((32, 32), np.float32)).save(tmp_path / "float.tif")
    expected = {
        tmp_path / "folder.png": "this is a folder; give an image or a video",
        tmp_path / "text.png": "not a readable image: cannot identify image file",
        tmp_path / "text.mp4": "not a readable video: Invalid data found when processing input",
        tmp_path / "empty.jpg": "not a readable image: cannot identify image file",
        tmp_path / "float.tif": "not a readable image: its pixels are floating-point numbers, whose white",
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
