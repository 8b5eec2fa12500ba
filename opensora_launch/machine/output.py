"""This process's standard output and error, whose faults never decide how a run ends."""

import io
import os
import sys
from typing import Any, TextIO


class _Output(io.FileIO):
    """A stream of which only the first write may fail, and only if it is `strict`. What is not written is lost."""

    def __init__(self, fd: int, *, strict: bool) -> None:
        super().__init__(fd, "w", closefd=False)
        self._strict = strict

    def write(self, data: Any, /) -> int:
        try:
            written: int | None = super().write(data)
        except OSError:  # the disk is full, the reader is gone, the terminal is gone
            strict, self._strict = self._strict, False
            if strict:
                raise
            written = None
        return memoryview(data).nbytes if written is None else written


def secure_output(*, strict: bool = False) -> None:
    """Replace this process's standard output and error by streams that cannot fail. Call it once, at the start.

    Closed ones lead nowhere: a file that is opened later must not get their numbers. What an encoding cannot spell is
    escaped. With `strict`, the first write to standard output that fails raises OSError, for commands that only print.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = _text_stream(1, sys.stdout, strict=strict)
    sys.stderr = _text_stream(2, sys.stderr, strict=False)


def _text_stream(fd: int, before: TextIO | None, *, strict: bool) -> TextIO:
    raw = _Output(fd, strict=strict)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",
        line_buffering=fd == 2 or raw.isatty(),
    )
