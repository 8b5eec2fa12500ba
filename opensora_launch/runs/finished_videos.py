"""Which videos of a run are made, which failed, and which are missing.

A video is made when its record samples/NAME.json, which is written last, names a file that is there and not empty. A
video that failed while others could be made has failed/NAME.txt, with the reason. `--resume` tries it again.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.rundir import RunDir, write_whole


def sample_file(run: RunDir, video: str) -> Path | None:
    """The file of a video that is made; None if it is not, or if its file was deleted or emptied since."""
    try:
        record = json.loads(run.record(video).read_text(encoding="utf-8"))
        path: Path = run.samples / record["file"]
        return path if path.stat().st_size > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sample_files(run: RunDir, videos: Sequence[VideoRequest]) -> list[Path]:
    """The files of those videos that are made."""
    return [path for video in videos if (path := sample_file(run, video.name))]


def missing_videos(run: RunDir, videos: Sequence[VideoRequest]) -> tuple[VideoRequest, ...]:
    """The videos that are not made."""
    return tuple(video for video in videos if sample_file(run, video.name) is None)


def is_settled(run: RunDir, video: str) -> bool:
    """Whether nobody has to work on a video: it is made, or it failed."""
    return sample_file(run, video) is not None or run.failure(video).exists()


def unsettled_videos(run: RunDir, videos: Sequence[VideoRequest]) -> tuple[VideoRequest, ...]:
    """The videos that are neither made nor failed."""
    return tuple(video for video in videos if not is_settled(run, video.name))


def plan_with_less(run: RunDir, plan: Plan) -> Plan | None:
    """The plan to continue with after memory ran out, for what is neither made nor failed; None if there is none."""
    images = unsettled_videos(run.images, plan.images.videos) if plan.images else ()
    return plan.with_less(unsettled_videos(run, plan.videos), images)


def failed_videos(run: RunDir) -> dict[str, str]:
    """Why each video of a run failed, by name. One that is made since is not among them."""
    found = {}
    for path in sorted(run.failed.glob("*.txt")):
        with suppress(OSError):
            if sample_file(run, path.stem) is None:
                found[path.stem] = path.read_text(encoding="utf-8").strip()
    return found


def record_failed(run: RunDir, reasons: Mapping[str, str]) -> None:
    """Record why videos failed, by name."""
    for video, reason in reasons.items():
        run.failed.mkdir(parents=True, exist_ok=True)
        write_whole(run.failure(video), f"{reason}\n")


def forget_failed(run: RunDir) -> None:
    """Delete what failed before, so that it is tried again."""
    for path in run.failed.glob("*.txt"):
        path.unlink(missing_ok=True)
