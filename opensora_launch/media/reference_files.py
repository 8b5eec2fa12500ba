"""Check on the login node whether the references of a run can be used, without torch and without keeping pixels.

What a condition takes from a file is decoded, by the functions that the ranks read it with: a container promises frames
that it does not hold, and damage may begin after the first frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from opensora_launch.errors import Problems
from opensora_launch.media.prompts import COND_TYPES, PromptEntry

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")
MIN_SIDE_PX = 16  # one token of the model; a smaller picture is probably an icon
MIN_FRAMES = 5  # the shortest video: Open-Sora overwrites a single frame with the reference


@dataclass(frozen=True)
class ReferenceFile:
    """Kind ("image" or "video") and shown size of a reference; how many of the frames asked for it has."""

    kind: str
    height_px: int
    width_px: int
    frames: int


class ReferenceCheck:
    """Checks references for videos of `num_frames` pixel frames. The same part of a file is decoded once."""

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._inspect = cache(_inspect_or_reason)

    def problems(self, refs: Sequence[str], cond_type: str) -> list[str]:
        """Return one line per problem of a prompt with these references; none if they can be used.

        t2v does not use references, so they are not checked. An unknown condition type is not reported here, but by
        `check_cond_type`.
        """
        cond, found = COND_TYPES.get(cond_type, COND_TYPES["t2v"]), list[str]()
        if not cond.parts:
            return found
        if not refs:
            give = "give one with --ref or in the column 'ref', or use t2v"
            found.append(f"cond_type={cond_type} needs a reference; {give}")
        elif len(refs) > cond.max_references:
            most = f"{cond.max_references} reference{'s' * (cond.max_references > 1)}"
            found.append(f"cond_type={cond_type} takes at most {most}, not {len(refs)}")
        if self._num_frames < (least := max(MIN_FRAMES, cond.frames)):
            found.append(f"cond_type={cond_type} needs a video.num_frames of at least {least}, not {self._num_frames}")
        taken = [(refs[part.which], part.end) for part in cond.parts if refs]
        reasons = {path: _why_unfit(self._inspect(path, cond.frames, end), cond_type) for path, end in taken}
        return found + [f"ref {path}: {reason}" for path, reason in reasons.items() if reason]


def unreadable(entries: Sequence[PromptEntry]) -> list[str]:
    """Return one line per reference that cannot be read as an image or a video, whatever its condition type."""
    problems = Problems()
    for path, source in {ref: entry.source for entry in reversed(entries) for ref in entry.refs}.items():
        if isinstance(reason := _inspect_or_reason(path), str):
            problems.add_at(source, f"ref {path}: {reason}")
    return problems.lines


def inspect_file(path: str, count: int = 1, end: Literal["head", "tail"] = "head") -> ReferenceFile:
    """Decode an image, or the first or last `count` frames of a video, and return what was found.

    Raises ValueError if that fails, OSError if the file cannot be opened.
    """
    if Path(path).is_dir():
        raise ValueError("this is a folder; give an image or a video")
    suffix = Path(path).suffix.lower()
    if suffix not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        allowed = ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        raise ValueError(f"its name is not that of an image or video; the allowed endings are {allowed}")
    if suffix in VIDEO_SUFFIXES:
        from opensora_launch.media.video_frames import decode_frames, take_frames

        sizes = [frame.shown_size() for frame in take_frames(decode_frames(path), count, end)]
        return ReferenceFile("video", *sizes[0], len(sizes))
    from opensora_launch.media.image_files import read_image

    image = read_image(path)
    return ReferenceFile("image", image.height, image.width, 1)


def why_unreadable(path: str, error: OSError | ValueError) -> str:
    """Return what `inspect_file` and the loading of references raise, in one line without the path."""
    if isinstance(error, FileNotFoundError):
        return "no such file" + ("; separate two references by ';', not ','" if "," in Path(path).name else "")
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def _inspect_or_reason(path: str, count: int = 1, end: Literal["head", "tail"] = "head") -> ReferenceFile | str:
    try:
        return inspect_file(path, count, end)
    except (OSError, ValueError) as error:
        return why_unreadable(path, error)


def _why_unfit(file: ReferenceFile | str, cond_type: str) -> str:
    """Return why a file cannot serve a condition; empty if it can. `file` is the reason if it could not be read."""
    cond = COND_TYPES[cond_type]
    if isinstance(file, str):
        return file
    if file.kind not in cond.kinds:
        return f"cond_type={cond_type} needs a {' or '.join(cond.kinds)}, but this is an {file.kind}"
    if min(file.height_px, file.width_px) < MIN_SIDE_PX:
        return f"{file.width_px} x {file.height_px} pixels; each side needs at least {MIN_SIDE_PX}"
    if file.frames < cond.frames:
        return f"{file.frames} frames; cond_type={cond_type} needs at least {cond.frames}"
    return ""
