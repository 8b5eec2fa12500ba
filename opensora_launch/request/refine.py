"""`--refine-command CMD`: a program on this machine that rewrites prompts, before any rank starts.

It gets a prompt on its standard input, and what it prints is the refined prompt. No shell reads the command.
"""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from typing import IO

from opensora_launch.errors import UserError
from opensora_launch.launch.verdict import how_it_ended
from opensora_launch.media.prompts import PromptEntry

FLAG = "--refine-command"
REFINE_S = 300.0  # for one prompt
ANSWER_BYTES = 16 * 1024
_SHOWN_CHARS = 40  # of a prompt, in a message


def refine_words(command: str) -> list[str]:
    """The words of a command whose program is here. Raises UserError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"{FLAG} {command}: {error}; quote it as for a shell") from error
    if not words:
        raise UserError(f"{FLAG} is empty; give a program with its arguments")
    if shutil.which(words[0]) is None:
        raise UserError(f"{FLAG} {command}: there is no program {words[0]} here that can be run")
    return words


def refine_entries(command: str, entries: Sequence[PromptEntry], asked: Iterable[int]) -> tuple[PromptEntry, ...]:
    """The prompts, of which those with the numbers `asked` are refined, unless their file refines them.

    Each distinct text is asked for once. Raises UserError at the first answer that cannot be used.
    """
    wanted, answer = set(asked), cache(partial(_answer, refine_words(command)))
    made = list(entries)
    for place, entry in enumerate(entries):
        if entry.index in wanted and entry.refined is None:
            made[place] = replace(entry, refined=answer(entry.text), refined_by=command)
    return tuple(made)


def _answer(words: Sequence[str], prompt: str, limit_s: float = REFINE_S) -> str:
    """What the program makes of a prompt."""
    head = prompt if len(prompt) <= _SHOWN_CHARS else f"{prompt[:_SHOWN_CHARS]}..."
    where = f"{FLAG} {shlex.join(words)}, for the prompt {head!r}"
    with tempfile.TemporaryFile() as typed, tempfile.TemporaryFile() as errors:
        typed.write(prompt.encode())
        typed.seek(0)
        try:
            process = subprocess.Popen(
                words, stdin=typed, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        except OSError as error:
            raise UserError(f"{where}: it cannot be run: {error.strerror}") from error
        late = threading.Event()
        timer = threading.Timer(limit_s, _end, [process, late])
        timer.start()
        try:
            assert process.stdout
            with process.stdout:
                answer = process.stdout.read(ANSWER_BYTES + 1)
            if len(answer) > ANSWER_BYTES:
                raise UserError(f"{where}: it printed more than {ANSWER_BYTES // 1024} KiB")
            code = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                _end(process)
                process.wait()
        if late.is_set():
            raise UserError(f"{where}: it was not done within {limit_s:g} s, and was ended")
        if code:
            raise UserError(f"{where}: it {how_it_ended(code)}{_last_line(errors)}")
    try:
        text = answer.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: what it printed is not UTF-8 at byte {error.start}") from error
    if not text:
        raise UserError(f"{where}: it printed nothing")
    return text


def _end(process: subprocess.Popen[bytes], late: threading.Event | None = None) -> None:
    """End a program and all that it started; because it is `late`, if that is given."""
    if late:
        late.set()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(errors: IO[bytes]) -> str:
    """The last line that a program wrote to its standard error, to go behind a message."""
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - ANSWER_BYTES))
    lines = [line.strip() for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""
