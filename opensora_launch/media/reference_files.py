"""Check on the login node whether the references of a run can be used, without torch and without keeping pixels.

An image is decoded at an eighth of its size, which finds truncated files. A video's frames are counted, and one is
decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from opensora_launch.errors import Problems
from opensora_launch.media.prompts import COND_TYPES, PromptEntry, cond_type_of

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")
MIN_SIDE_PX = 16  # one token of the model; a smaller picture is probably an icon
MIN_FRAMES = 5  # the shortest video: Open-Sora overwrites a single frame with the reference


@dataclass(frozen=True)
class ReferenceFile:
    """Kind ("image" or "video"), size and length of a reference; an image has 1 frame."""

    kind: str
    height_px: int
    width_px: int
    frames: int


def check_references(entries: Sequence[PromptEntry], cond_type: str | None, num_frames: int) -> list[str]:
    """Return one line per problem with the references of these prompts; none if all can be used.

    `cond_type` is the run's; None derives it from each prompt's references. An unknown one is not reported here, but by
    `check_cond_type`. `num_frames` is the video's length in pixel frames. Each file is opened once. t2v does not use
    references, so they are not checked.
    """
    problems = Problems()
    inspected: dict[str, ReferenceFile | str] = {}
    for entry in entries:
        name = cond_type_of(entry, cond_type)
        cond = COND_TYPES.get(name, COND_TYPES["t2v"])
        add = partial(problems.add_at, entry.source)
        if not cond.parts:
            continue
        if not entry.refs:
            add(f"cond_type={name} needs a reference; give one with --ref or in the column 'ref', or use t2v")
        elif len(entry.refs) > cond.max_references:
            plural = "s" * (cond.max_references > 1)
            add(f"cond_type={name} takes at most {cond.max_references} reference{plural}, not {len(entry.refs)}")
        if num_frames < (least := max(MIN_FRAMES, cond.frames)):
            add(f"cond_type={name} needs a video.num_frames of at least {least}, not {num_frames}")
        for path in dict.fromkeys(entry.refs[part.which] for part in cond.parts if entry.refs):
            if path not in inspected:
                inspected[path] = _inspect_or_reason(path)
            reason = _why_unfit(inspected[path], name)
            if reason:
                add(f"ref {path}: {reason}")
    return problems.lines


def unreadable(entries: Sequence[PromptEntry]) -> list[str]:
    """Return one line per reference that cannot be read as an image or a video, whatever its condition type."""
    problems = Problems()
    for path, source in {ref: entry.source for entry in reversed(entries) for ref in entry.refs}.items():
        if isinstance(reason := _inspect_or_reason(path), str):
            problems.add_at(source, f"ref {path}: {reason}")
    return problems.lines


def inspect_file(path: str) -> ReferenceFile:
    """Open an image or video. Raise ValueError if it cannot be decoded, OSError if it cannot be opened."""
    suffix = Path(path).suffix.lower()
    if suffix not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        allowed = ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        raise ValueError(f"its name is not that of an image or video; the allowed endings are {allowed}")
    with open(path, "rb"):  # raises the plain reason if the file is missing or may not be read
        pass
    return _inspect_image(path) if suffix in IMAGE_SUFFIXES else _inspect_video(path)


def _inspect_or_reason(path: str) -> ReferenceFile | str:
    try:
        return inspect_file(path)
    except FileNotFoundError:
        return "no such file" + ("; separate two references by ';', not ','" if "," in Path(path).name else "")
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        return str(error)


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


def _inspect_image(path: str) -> ReferenceFile:
    from PIL import ExifTags, Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            image.draft("RGB", (1, 1))  # jpeg only: decode at an eighth of the size
            image.load()
            on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Image.DecompressionBombError as error:
        raise ValueError(f"the image is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # raised by Pillow's decoders for truncated and foreign files
        raise ValueError(f"not a readable image: {error}") from error
    return ReferenceFile("image", width if on_its_side else height, height if on_its_side else width, 1)


def _inspect_video(path: str) -> ReferenceFile:
    import av

    try:
        with av.open(f"file:{path}") as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            stream = container.streams.video[0]
            first = next(container.decode(stream), None)
            container.seek(0)
            frames = sum(packet.size > 0 for packet in container.demux(stream))  # a header may promise more
    except av.FFmpegError as error:
        raise ValueError(f"not a readable video: {error.strerror}") from error
    if first is None:
        raise ValueError("not a readable video: no frame could be decoded")
    return ReferenceFile("video", first.height, first.width, frames)
