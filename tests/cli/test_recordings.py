"""What a user sees of a whole run, as golden files: on terminals of two widths, without colours, dumb, in a pipe."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
TIMES = (
    (r"\d+:\d\d:\d\d", "H:MM:SS"),
    (r"about \d+ s left", "about N s left"),
    (r"done in .*", "done in N s: ..."),
)
WAYS: dict[str, tuple[int, dict[str, str]]] = {
    "80": (80, {"TERM": "xterm-256color"}),
    "140": (140, {"TERM": "xterm-256color"}),
    "no_color": (80, {"TERM": "xterm-256color", "NO_COLOR": "1"}),
    "dumb": (80, {"TERM": "dumb"}),
    "piped": (0, {"TERM": "xterm-256color"}),
}


def recorded(folder: Path, columns: int, env: dict[str, str]) -> str:
    """What a terminal of so many columns is sent, or a pipe where there are none."""
    ours, its = pty.openpty() if columns else os.pipe()
    if columns:
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    taken = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TERM")
    env = {name: value for name, value in os.environ.items() if name not in taken} | env
    argv = [sys.executable, "-m", "tests.cli.replay", str(folder)]
    with subprocess.Popen(argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=its, stderr=its) as process:
        os.close(its)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # the other end of the terminal is closed
            pass
        os.close(ours)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


def readable(text: str, folder: Path) -> str:
    """The same with times and folders replaced, and with what moves the cursor and sets colours spelled out."""
    text = text.replace("\r\n", "\n").replace(str(folder), "RUNS")
    for pattern, instead in TIMES:
        text = re.sub(pattern, instead, text)
    return text.replace("\x1b[", "<ESC>").replace("\r<ESC>2K", "\n<AGAIN>").replace("\r", "<CR>")


@pytest.mark.parametrize("way", WAYS)
def test_a_run_as_it_is_seen(way: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = readable(recorded(tmp_path, *WAYS[way]), tmp_path)
    golden = GOLDEN / f"run_{way}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("way", ["80", "140"])
def test_lines_fit(way: str) -> None:
    plain = re.sub(r"<CR>|<AGAIN>|<ESC>[0-9;?]*[A-Za-z]", "", (GOLDEN / f"run_{way}.txt").read_text())
    assert [line for line in plain.splitlines() if len(line) > int(way)] == []


def test_colours_are_where_they_are_wanted() -> None:
    """Without colours a terminal still has its bar; what cannot move a line gets the lines of a pipe."""
    text = {way: (GOLDEN / f"run_{way}.txt").read_text() for way in WAYS}
    colour = re.compile(r"<ESC>[0-9;]*[34]\d[;\d]*m")
    assert {way for way in WAYS if colour.search(text[way])} == {"80", "140"}
    assert {way for way in WAYS if "━" in text[way]} == {"80", "140", "no_color"}
    assert text["dumb"] == text["piped"]
    assert "<ESC>" not in text["piped"]
