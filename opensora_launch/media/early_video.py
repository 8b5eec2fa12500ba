"""Encode a video while its last frames are still decoded."""

from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType

import numpy as np
from jaxtyping import UInt8

from opensora_launch.media.video import save_video, video_writer


class EarlyVideo:
    """A video file whose first frames may be encoded before the last ones are there, in a thread.

    Use it as a context: a file that is not finished inside never appears. `path` has no suffix, as for `save_video`.
    """

    def __init__(self, path: Path, fps: int, about: Mapping[str, str]) -> None:
        self._path, self._fps, self._about = path, fps, about
        self._ready: SimpleQueue[int | None] = SimpleQueue()  # frames that are there; None: the video is given up
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "EarlyVideo":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread:
            self._ready.put(None)
            self._thread.join()

    def ready(self, frames: UInt8[np.ndarray, "T H W 3"], stop: int) -> None:
        """Encode the frames up to `stop`, which do not change any more. `frames` is always the same array."""
        if self._thread is None:
            self._thread = Thread(target=self._encode, args=(frames,), daemon=True)
            self._thread.start()
        self._ready.put(stop)

    def finish(self, frames: UInt8[np.ndarray, "T H W 3"]) -> Path:
        """Encode the rest; the file appears. Returns its path. Raises what encoding raised."""
        if self._thread is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return save_video(self._path, frames, self._fps, self._about)
        self._ready.put(len(frames))
        self._thread.join()
        self._thread = None
        if self._error:
            raise self._error
        return self._file

    @property
    def _file(self) -> Path:
        return self._path.with_name(f"{self._path.name}.mp4")

    def _encode(self, frames: UInt8[np.ndarray, "T H W 3"]) -> None:
        done = 0
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with video_writer(self._file, frames.shape[1], frames.shape[2], self._fps, self._about) as write:
                while done < len(frames):
                    stop = self._ready.get()
                    if stop is None:
                        raise _GivenUp
                    for frame in frames[done:stop]:
                        write(frame)
                    done = max(done, stop)
        except _GivenUp:
            pass
        except BaseException as error:  # noqa: BLE001 the thread that waits raises it
            self._error = error


class _GivenUp(Exception):
    pass
