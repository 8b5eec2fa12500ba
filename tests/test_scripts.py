"""The shell scripts, in a copy of the checkout whose Python is a stand-in that writes down how it is called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from opensora_launch.cli.verbs import VERBS

ROOT = Path(__file__).parent.parent
# Plays both the system's Python and the one in .venv; `log` lies beside it or, from .venv/bin, in the checkout.
PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin"; echo version >"$3/pyvenv.cfg"; cp "$0" "$3/bin/python"
             printf '#!/bin/sh\\nprintf "%%s\\\\n" "$@"\\n' >"$3/bin/opensora-launch"; chmod +x "$3/bin/opensora-launch"
             echo venv >>log;;
  "-m pip") shift 2; sleep 0.3; echo "pip $*" >>log; [ ! -e no-network ];;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    here = tmp_path / "a checkout's copy"
    here.mkdir()
    shutil.copytree(ROOT / "scripts", here / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, here)
    (here / "fake-python").write_text(PYTHON)
    (here / "fake-python").chmod(0o755)
    return here


def start(checkout: Path, name: str, *args: str, python: str = "") -> subprocess.Popen[str]:
    env = os.environ | {"PYTHON": python or "./fake-python"}
    argv = [str(checkout / "scripts" / name), *args]
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(checkout: Path, name: str, *args: str, python: str = "") -> tuple[int, str, str]:
    process = start(checkout, name, *args, python=python)
    out, err = process.communicate()
    return process.returncode, out, err


def pip_calls(checkout: Path) -> list[str]:
    log = (checkout / "log").read_text().splitlines()
    assert log[0] == "venv"
    return [line.split()[-1] for line in log[1:]]


def test_bootstrap_installs_once_and_extras_add_up(checkout: Path) -> None:
    for extras in ([], [], ["dev"], ["dev"], [], ["figures"], ["figures", "dev"]):
        assert run(checkout, "bootstrap", *extras)[0] == 0
    assert pip_calls(checkout) == [".", ".[dev]", ".[dev,figures]"]
    assert "-c constraints.txt" in (checkout / "log").read_text()


def test_bootstrap_sees_a_changed_pin_and_a_moved_checkout(checkout: Path) -> None:
    run(checkout, "bootstrap", "dev")
    (checkout / "constraints.txt").write_text("torch==2.13.1\n")
    run(checkout, "bootstrap")
    assert pip_calls(checkout) == [".[dev]", ".[dev]"]
    moved = checkout.rename(checkout.parent / "moved")
    run(moved, "bootstrap")
    assert (moved / "log").read_text().splitlines().count("venv") == 2  # scripts in .venv hold the old path


def test_bootstraps_at_once_wait_for_one_another(checkout: Path) -> None:
    several = [start(checkout, "bootstrap", "dev") for _ in range(3)]
    assert [(p.communicate(), p.returncode)[1] for p in several] == [0, 0, 0]
    assert pip_calls(checkout) == [".[dev]"]


def test_colossalai_comes_without_its_pins_after_what_it_needs(checkout: Path) -> None:
    """The stand-in has no package at any time, so a second run installs again."""
    code, _, err = run(checkout, "install_colossalai")
    assert code == 0, err
    log = (checkout / "log").read_text().splitlines()
    assert [line.split()[-1] for line in log] == ["venv", ".[colossalai]", "colossalai==0.5.0"]
    assert "--no-deps" in log[-1]
    (checkout / "no-network").touch()
    assert run(checkout, "install_colossalai")[0] != 0


def test_a_failed_install_is_tried_again(checkout: Path) -> None:
    (checkout / "no-network").touch()
    assert run(checkout, "bootstrap")[0] != 0
    (checkout / "no-network").unlink()
    assert run(checkout, "bootstrap")[0] == 0
    assert pip_calls(checkout) == [".", "."]


def test_a_missing_python_is_said(checkout: Path) -> None:
    code, _, err = run(checkout, "bootstrap", python="no-such-python")
    assert code == 2
    assert "no Python >= 3.11" in err
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("args", "passed"),
    [
        (["--prompt", "raining, 'sea'"], ["generate", "--prompt", "raining, 'sea'"]),
        (["plan", "video=768px"], ["plan", "video=768px"]),
        (["--help"], ["--help"]),
        ([], ["generate"]),
    ],
)
def test_run_adds_the_verb(checkout: Path, args: list[str], passed: list[str]) -> None:
    code, out, _ = run(checkout, "run", *args)
    assert (code, out.splitlines()) == (0, passed)


def test_run_knows_every_verb() -> None:
    """A verb that it does not know would be taken for a word of generate."""
    (line,) = [line for line in (ROOT / "scripts" / "run").read_text().splitlines() if line.startswith("  generate |")]
    assert sorted(line.removesuffix(") ;;").replace("|", " ").split()) == sorted(VERBS)
