"""The command line accepts every command and override in the pages that newcomers copy from."""

import re
import shlex
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.cli.verbs import VERBS

ROOT = Path(__file__).parent.parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("docs/faq.md", "docs/container.md", "docs/index.md")}
COMMAND = re.compile(
    r"(?:^|`)(?:\w+=\S+ )*(?:opensora-launch|docker compose run --rm opensora) ([^`\n]+)", re.MULTILINE
)
OVERRIDE = re.compile(r"(?<=`)([a-z_0-9.]+=[^`. ][^` ]*)(?=[` ])")
PLACEHOLDERS = {"RUN", "A", "B"}  # folders of runs, which these tests do not have
PREDICTS = ("plan", "estimate")


def commands(text: str) -> list[list[str]]:
    return [shlex.split(found, comments=True) for found in COMMAND.findall(text)]


ALL = sorted({tuple(words) for text in PAGES.values() for words in commands(text) if words[-1] != "..."})


def test_commands_are_found() -> None:
    text = "`opensora-launch top RUN`\nX=1 opensora-launch plan a=b  # why\ndocker compose run --rm opensora doctor\n"
    assert commands(text) == [["top", "RUN"], ["plan", "a=b"], ["doctor"]]
    assert {verb for verb, *_ in ALL} >= {"plan", "estimate", "generate", "verify", "doctor", "report", "top", "status"}


@pytest.mark.parametrize("words", [w for w in ALL if w[0] in PREDICTS], ids=" ".join)
def test_predictions_are_made(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(words)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("words", [w for w in ALL if w[0] not in PREDICTS], ids=" ".join)
def test_other_commands_are_well_formed(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """The verb exists, and its groups and keys compose, unless it takes the folder of a run."""
    verb, *rest = words
    assert verb in VERBS
    if PLACEHOLDERS.isdisjoint(rest):
        sweep = ["-m"] if any("," in word and "[" not in word for word in rest) else []
        rest = [word for word in rest if not word.startswith("gpus=")]  # bench's own
        assert main(["generate", *sweep, *rest, "--cfg", "job"]) == 0, capsys.readouterr().err


def by_key(words: set[str]) -> list[dict[str, str]]:
    """Distribute the overrides over as few command lines as possible, so that none has a key twice."""
    lines: list[dict[str, str]] = []
    for word in sorted(words):
        key = word.partition("=")[0]
        line = next((line for line in lines if key not in line), None)
        if line is None:
            lines.append(line := {})
        line[key] = word
    return lines


def test_overrides_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    named = {word for text in PAGES.values() for word in OVERRIDE.findall(text)}
    assert len(named) > 15
    for line in by_key(named):
        assert main(["generate", *line.values(), "--cfg", "job"]) == 0, capsys.readouterr().err
