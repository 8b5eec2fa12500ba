"""What `plan`, `estimate` and `doctor` print on a terminal and into a pipe, and the pictures that they draw."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.runs import made_run
from tests.cli.test_plan import H100, ROOT, asked


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("SVG", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture(ending: str, start: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / f"plan.{ending}"
    assert asked(capsys, *H100, "--plot", str(file))[0] == 0
    assert file.read_bytes().startswith(start)


@pytest.mark.parametrize(
    "verb", ["plan hardware=l20 topology=2gpu", "estimate card", "doctor model=tiny topology=cpu2"]
)
def test_a_picture_that_can_go_nowhere(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.svg").mkdir()
    for name, said in (
        ("no/such/plan.svg", f"there is no folder {tmp_path}/no/such"),
        ("plan.foo", "the suffix must be one of .svg, .png, .pdf"),
        ("plan", "the suffix must be one of"),
        ("folder.svg", "is a folder"),
    ):
        code, out, err = asked(capsys, *verb.split(), "--plot", str(tmp_path / name))
        assert (code, out) == (2, "")  # told before anything is reckoned
        assert err.splitlines()[0] == "error: the picture cannot be drawn:"
        assert said in err


def test_a_picture_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = asked(capsys, *H100, "--plot", str(tmp_path / "plan.png"))
    assert code == 2
    assert "--plot needs matplotlib: pip install 'opensora-launch[figures]'" in err
    code, _, err = asked(capsys, "estimate", "card", "--plot", str(tmp_path / "cards.pdf"))
    assert code == 2
    assert "'opensora-launch[figures]'; an .svg does not" in err


def on_a_terminal(*words: str, code: int | None = None, **more: str) -> str:
    """What a command shows on a terminal."""
    ours, its = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"}
    env.pop("NO_COLOR", None)
    env |= more
    argv = [sys.executable, "-m", "opensora_launch.cli", *words]
    process = subprocess.Popen(argv, cwd=ROOT, env=env, stdin=its, stdout=its, stderr=its)
    os.close(its)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() in ((0, 1) if code is None else (code,))
    return shown.decode()


@pytest.mark.parametrize(
    ("words", "styled"),
    [
        (("plan", "video=768px", "topology=8gpu", "hardware=h100_sxm"), "\x1b[1;32m*  cfg2"),
        (("plan", "video=768px", "topology=1gpu", "hardware=rtx3080", "fit=strict"), "\x1b[1;31mnothing fits: "),
        (("estimate", "video", "hardware=l20"), "\x1b[2m  "),
        (("estimate", "card"), "\x1b[32m  gb200 "),
        (("doctor", "--quick", "model=tiny", "topology=cpu2"), "\x1b[32mok  \x1b[0m  "),
        (("--help",), "\x1b[1mverbs:\x1b[0m"),
        (("generate", "--help", "sampling"), "\x1b[36m  num_steps=50"),
        (("list", "tests/cli"), "no runs in tests/cli"),
    ],
)
def test_lines_are_coloured_on_a_terminal_and_whole(words: tuple[str, ...], styled: str) -> None:
    shown = on_a_terminal(*words)
    assert styled in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n")
    argv = [sys.executable, "-m", "opensora_launch.cli", *words]
    piped = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True).stdout
    assert "\x1b" not in piped
    if words[0] != "doctor":  # whose free memory moves
        assert plain == piped


def test_a_wait_is_shown_and_cleared() -> None:
    shown = on_a_terminal("doctor", "--quick", "model=tiny", "topology=cpu2")
    assert re.search(r"checking this machine .*0:00:\d\d", shown)
    assert shown.rindex("checking this machine") < shown.rindex("\x1b[2K") < shown.index("no problem found")


@pytest.mark.parametrize(("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_errors_are_coloured_where_that_is_wanted(more: dict[str, str], coloured: bool) -> None:
    shown = on_a_terminal("genrate", code=2, **more)
    assert shown.startswith("\x1b[1;31merror:\x1b[0m 'genrate'" if coloured else "error: 'genrate'")


def test_a_reader_that_has_seen_enough() -> None:
    command = f"{sys.executable} -m opensora_launch.cli estimate card | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a folder that ASCII cannot spell."""
    return made_run(tmp_path_factory.mktemp("über"), "run", 2)


@pytest.mark.parametrize("streams", [">/dev/full 2>&1", ">&- 2>&- <&-", "| true", "2>&1 | true"])
def test_output_that_cannot_be_written_does_not_decide_how_work_ends(streams: str, run: Path) -> None:
    (run / "report.md").unlink(missing_ok=True)
    command = f'{sys.executable} -m opensora_launch.cli report "$0" {streams}; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command, run], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert (run / "report.md").exists()


def test_a_terminal_that_went_away(run: Path) -> None:
    ours, its = pty.openpty()
    os.close(ours)
    argv = [sys.executable, "-m", "opensora_launch.cli", "report", str(run)]
    assert subprocess.run(argv, cwd=ROOT, stdout=its, stderr=its).returncode == 0
    os.close(its)


def test_a_folder_that_the_encoding_cannot_spell(run: Path) -> None:
    argv = [sys.executable, "-m", "opensora_launch.cli", "report", str(run)]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"report: {run / 'report.html'}".encode("ascii", "backslashreplace").decode() in done.stdout


def test_a_command_that_only_prints_fails_where_it_cannot() -> None:
    """Its output is all its work: an empty file must not pass for an answer."""
    argv = [sys.executable, "-m", "opensora_launch.cli", "estimate", "card"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(argv, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_a_working_folder_without_a_name(tmp_path: Path) -> None:
    """It has been deleted, or its name is no text that a run's files can hold."""
    argv = f"{sys.executable} -m opensora_launch.cli status x"
    for name, made, said in (
        ("gone", "rmdir ../gone", "the working folder has been deleted"),
        ("caf\udce9", ":", "is not UTF-8"),
    ):
        (tmp_path / name).mkdir()
        command = ["bash", "-c", f"{made}; {argv}"]
        done = subprocess.run(
            command, cwd=tmp_path / name, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert said in done.stderr
