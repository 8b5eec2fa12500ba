"""What finished files say about themselves, and their contact sheets."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from opensora_launch.media.contact_sheet import contact_sheet
from opensora_launch.media.video import save_video
from tests.media.clips import noise

ABOUT = {
    "title": "비, sea\n“waves” = ; # \\",
    "comment": "generate --prompt 'x y'",
    "description": "{}",
}


def read_metadata(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return dict(container.metadata)


def test_an_mp4_keeps_what_it_is_told(tmp_path: Path) -> None:
    found = read_metadata(save_video(tmp_path / "a", noise(5, 32, 48, 3), 24, ABOUT))
    assert {name: found[name] for name in ABOUT} == ABOUT


def test_a_png_keeps_it_as_text(tmp_path: Path) -> None:
    with Image.open(save_video(tmp_path / "a", noise(1, 32, 48, 3), 24, ABOUT)) as image:
        assert image.text == {name.capitalize(): text for name, text in ABOUT.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("frames", [1, 5])
def test_no_text_costs_the_video(tmp_path: Path, frames: int) -> None:
    """Text that no file can hold is written with a question mark or a space in its place."""
    path = save_video(tmp_path / "a", noise(frames, 32, 48, 3), 24, {"title": "a\0b \ud800 c" + 4000 * "x"})
    if frames == 1:
        with Image.open(path) as image:
            assert image.text["Title"].startswith("a b ? cxx")  # type: ignore[attr-defined]
    else:
        assert read_metadata(path)["title"].startswith("a b ? cxx")


@pytest.mark.parametrize(
    ("shape", "side", "size"),
    [((129, 432, 768), 3, (480, 270)), ((2, 32, 48), 1, (48, 32)), ((8, 32, 48), 2, (96, 64)), ((9, 2, 2), 3, (6, 6))],
)
def test_a_contact_sheet_has_the_shape_of_the_video(
    shape: tuple[int, int, int], side: int, size: tuple[int, int]
) -> None:
    """Its first picture is the first frame, its last the last, and frames between them follow in order."""
    count, height, width = shape
    grey = np.linspace(0, 255, count).round().astype(np.uint8)
    sheet = contact_sheet(np.broadcast_to(grey[:, None, None, None], (count, height, width, 3)))
    assert sheet.size == size
    step = (size[0] // side, size[1] // side)
    seen = [sheet.getpixel((n % side * step[0], n // side * step[1])) for n in range(side * side)]
    levels = [pixel[0] for pixel in seen if isinstance(pixel, tuple)]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, 255 if side > 1 else 0)
