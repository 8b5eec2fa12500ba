"""The command line accepts every command and override in the pages that newcomers copy from."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from opensora_launch.cli import main
from opensora_launch.cli.verbs import VERBS
from opensora_launch.request.flags import parse

ROOT = Path(__file__).parent.parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("docs/faq.md", "docs/container.md", "docs/index.md")}
COMMAND = re.compile(
    r"(?:^|`)(?:\w+=\S+ )*(?:opensora-launch|docker compose run --rm opensora) ([^`\n]+)", re.MULTILINE
)
MIGRATING = (ROOT / "docs/migrating.md").read_text()  # its other overrides are Open-Sora's
OVERRIDE = re.compile(r"(?<=`)([a-z_0-9.]+=[^`. ][^` ]*)(?=[` ])")
PLACEHOLDERS = {"RUN", "A", "B", "latest"}  # folders of runs, which these tests do not have
PREDICTS = ("plan", "estimate")


def commands(text: str) -> list[list[str]]:
    return [shlex.split(found, comments=True) for found in COMMAND.findall(text)]


ALL = sorted({tuple(words) for text in (*PAGES.values(), MIGRATING) for words in commands(text) if words[-1] != "..."})


def test_commands_are_found() -> None:
    text = "`opensora-launch top RUN`\nX=1 opensora-launch plan a=b  # why\ndocker compose run --rm opensora doctor\n"
    assert commands(text) == [["top", "RUN"], ["plan", "a=b"], ["doctor"]]
    assert {verb for verb, *_ in ALL} >= {"plan", "estimate", "generate", "verify", "doctor", "report", "top", "status"}


@pytest.mark.parametrize("words", [w for w in ALL if w[0] in PREDICTS], ids=" ".join)
def test_predictions_are_made(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(words)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("words", [w for w in ALL if w[0] not in PREDICTS], ids=" ".join)
def test_other_commands_are_well_formed(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """The verb and its flags exist, and its groups and keys compose, unless it takes the folder of a run."""
    verb, *rest = words
    assert verb in VERBS
    if verb != "generate":
        rest = list(parse(verb, VERBS[verb].flags, rest).rest)
    if PLACEHOLDERS.isdisjoint(rest):
        sweep = ["-m"] if any("," in word and "[" not in word for word in rest) else []
        rest = [word for word in rest if not word.startswith("gpus=")]  # bench's own
        assert main(["generate", *sweep, *rest, "--cfg", "job"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [w for w in ALL if w[0] == "generate" and list(w) in commands(MIGRATING)], ids=" ".join
)
def test_commands_for_migrants_are_planned(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a card that is named, with the files that they name; weights and Slurm may be missing here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets/texts").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "assets/texts/i2v.png")
    (tmp_path / "assets/texts/i2v.csv").write_text("text,ref\na pig,assets/texts/i2v.png\n")
    (tmp_path / "assets/texts/example.csv").write_text("text\nraining\nsea\n")
    more = [] if any(word.startswith("topology=") for word in words) else ["topology=1gpu"]
    assert main([*words, *more, "dry_run=true", "hardware=h100_sxm"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.startswith("plan:\n  model ")
    assert not (tmp_path / "runs").exists()


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
