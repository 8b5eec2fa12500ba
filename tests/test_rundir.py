"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from opensora_launch.rundir import aside, named


def test_a_full_disk_is_named_by_the_file_that_did_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(OSError, match="No space left on device") as caught, aside(path):
        Path("/dev/full").write_text("more than nothing")
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_names_its_file_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, named(tmp_path / "a"):
        (tmp_path / "b").read_text()
    assert caught.value.filename == str(tmp_path / "b")
