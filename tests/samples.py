"""Finished videos that no rank made."""

import json
from pathlib import Path
from typing import Any


def finish_video(run: Path, name: str, **record: Any) -> Path:
    """Write a video's file and its record; the path of the file."""
    folder = run / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.mp4"
    file.write_bytes(b"frames")
    (folder / f"{name}.json").write_text(json.dumps({"file": file.name, **record}))
    return file
