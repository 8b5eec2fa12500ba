"""A video whose first frames are encoded before its last ones are there."""

from pathlib import Path

import numpy as np
import pytest

from opensora_launch.media.early_video import EarlyVideo
from opensora_launch.media.video import save_video
from tests.media.clips import noise

ABOUT = {"title": "a red circle"}


def test_it_has_the_bytes_of_a_video_that_is_written_at_the_end(tmp_path: Path) -> None:
    frames, growing = noise(24, 32, 48, 3), np.zeros((24, 32, 48, 3), np.uint8)
    whole = save_video(tmp_path / "whole", frames, 24, ABOUT).read_bytes()
    with EarlyVideo(tmp_path / "new" / "early", 24, ABOUT) as file:
        for stop in (8, 16):
            growing[stop - 8 : stop] = frames[stop - 8 : stop]
            file.ready(growing, stop)
        assert not (tmp_path / "new" / "early.mp4").exists()
        growing[16:] = frames[16:]
        path = file.finish(growing)
    assert path.read_bytes() == whole
    assert [each.name for each in path.parent.iterdir()] == ["early.mp4"]


@pytest.mark.parametrize("frames", [1, 9])
def test_nothing_need_be_ready_early(frames: int, tmp_path: Path) -> None:
    clip = noise(frames, 32, 48, 3)
    whole = save_video(tmp_path / "whole", clip, 24, ABOUT)
    with EarlyVideo(tmp_path / "late", 24, ABOUT) as file:
        path = file.finish(clip)
    assert path.suffix == whole.suffix
    assert path.read_bytes() == whole.read_bytes()


def test_a_video_that_is_given_up_leaves_no_file(tmp_path: Path) -> None:
    with EarlyVideo(tmp_path / "early", 24, ABOUT) as file:
        file.ready(noise(24, 32, 48, 3), 8)
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_is_raised_where_the_video_is_finished(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    frames = noise(24, 32, 48, 3)
    with EarlyVideo(tmp_path / "taken" / "early", 24, ABOUT) as file:
        file.ready(frames, 8)
        with pytest.raises(OSError, match="taken"):
            file.finish(frames)
