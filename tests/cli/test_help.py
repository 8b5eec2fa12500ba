"""Help at once and complete; unknown words answered with the nearest; tab completion."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from opensora_launch import __version__
from opensora_launch.cli import main
from opensora_launch.cli.completion import SCRIPT, candidates
from opensora_launch.cli.help import topics
from opensora_launch.cli.verbs import VERBS
from opensora_launch.request.catalogue import groups, keys
from opensora_launch.request.flags import GENERATE_FLAGS
from tests.speed import HYDRA, in_python, main_without, times_slower

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("argv", [["--help"], ["generate", "--help"]])
def test_help_is_quick_and_loads_nothing_heavy(argv: list[str]) -> None:
    """A third of what Hydra takes for nothing is the usual."""
    code = main_without(argv, {"torch", "hydra", "omegaconf", "rich"})
    assert times_slower(in_python(code, "[]"), in_python(HYDRA), 0.6) <= 0.6


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def test_the_first_page_names_every_flag_and_group(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "generate", "--help")
    assert [flag.names[0] for flag in GENERATE_FLAGS if f"  {flag.names[0]}" not in text] == []
    several = [group.name for group in groups() if len(group.choices) > 1]
    assert [name for name in several if f"\n  {name} " not in text] == ["estimate"]
    assert [g.name for g in groups() if f" {g.default}*" not in text] == []


def test_the_second_page_explains_every_choice_and_key(capsys: pytest.CaptureFixture[str]) -> None:
    text = {name: shown(capsys, "estimate", "--help", name) for name in topics("estimate")}
    for group in groups():
        assert [c.name for c in group.choices if f"\n  {c.name}" not in text[group.name]] == []
    assert [key.path for key in keys() if not key.meaning] == [], "write them as key(DEFAULT, MEANING)"
    for key in keys():
        topic, dot, name = key.path.partition(".")
        page = " ".join(text[topic if dot else "other"].split())
        assert f" {name if dot else key.path}=" in page
        assert f" {key.meaning} [" in page
    assert "  num_steps=50" in text["sampling"]
    assert "catalogue [a number or null in GB/s]" in text["topology"]


def test_a_part_of_a_group_and_one_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert "  partition=null" in shown(capsys, "generate", "--help", "launcher.slurm")
    assert "\n  sampling.seed=42  of the noise" in shown(capsys, "plan", "--help", "sampling.seed")
    assert "keys, as KEY=VALUE" in shown(capsys, "verify", "--help=other")


def test_only_estimate_shows_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert "estimate" not in shown(capsys, "generate", "--help")
    assert "estimate" in topics("estimate")
    assert "estimate" not in topics("generate")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_main_help_has_verbs_and_examples(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, *argv)
    assert "opensora-launch generate --prompt waves video=256px" in text
    assert [verb for verb in VERBS if f"\n  {verb}  " not in text] == []


@pytest.mark.parametrize("width", [40, 80, 200])
def test_help_fits_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    pages = [shown(capsys, "--help"), *(shown(capsys, verb, "--help") for verb in VERBS)]
    for page in pages:
        assert len(page.splitlines()) <= 45 or width < 80
    pages += [shown(capsys, "generate", "--help", topic) for topic in topics("generate")]
    assert [line for page in pages for line in page.splitlines() if len(line) > width] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"opensora-launch {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["genrate"], "did you mean generate?"),
        (["--verison"], "did you mean --version?"),
        (["generate", "--promt", "x"], "--promt is not a flag of generate; did you mean --prompt?"),
        (["generate", "--num-steps", "3"], "sampling.num_steps=..."),
        (["generate", "--seed=3"], "sampling.seed=..."),
        (["generate", "--prompt"], "--prompt needs a value: --prompt TEXT"),
        (["generate", "--cfg", "jobs"], "use one of job, hydra, all"),
        (["generate", "--multirun=yes"], "--multirun takes no value"),
        (["generate", "--resume", "a", "--resume", "b"], "--resume is given twice"),
        (["generate", "--resume", "gone"], "gone is not a run's folder"),
        (["doctor", "--quik"], "did you mean --quick?"),
        (["estimat"], "did you mean estimate?"),
        (["generate", "--help", "smapling"], "there is no group smapling; did you mean sampling?"),
        (["generate", "--verison"], "did you mean opensora-launch --version?"),
        (["report"], "report takes one run's folder"),
        (["report", "gone"], "gone is not a run's folder"),
        (["report", "--basline", "x"], "did you mean --baseline?"),
        (["--shell-completion", "tcsh"], "must be bash"),
    ],
)
def test_wrong_words_get_one_line_and_exit_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("opensora-launch ", ["generate", "report", "--help"]),
        ("opensora-launch gen", ["generate"]),
        ("opensora-launch generate --pro", ["--prompt", "--prompts"]),
        ("opensora-launch generate topology=cpu", [f"topology=cpu{n}" for n in range(1, 9)]),
        ("opensora-launch generate vid", ["video=", "video."]),
        ("opensora-launch generate video.num", ["video.num_frames="]),
        ("opensora-launch generate model.mmdit.depth", ["model.mmdit.depth=", "model.mmdit.depth_single_blocks="]),
        ("opensora-launch generate precision=f", ["precision=fp16", "precision=fp32"]),
        ("opensora-launch generate dry_run=", ["dry_run=true", "dry_run=false"]),
        ("opensora-launch generate ++launcher=in", ["++launcher=inline"]),
        ("opensora-launch generate --cfg ", ["job", "hydra", "all"]),
        ("opensora-launch generate --help s", ["sampling"]),
        ("opensora-launch doctor env=", ["env=workstation", "env=cluster", "env=asis"]),
        ("opensora-launch estimate estimate=", ["estimate=sora", "estimate=guide_4090"]),
        ("opensora-launch estimate estimate.card_order=", ["estimate.card_order=watts"]),
        ("opensora-launch doctor --", ["--quick", "--json"]),
        ("opensora-launch generate --prompts ", []),
        ("opensora-launch generate --prompt vid", []),
    ],
)
def test_completion(line: str, some: list[str]) -> None:
    found = candidates(line)
    assert [word for word in some if word not in found] == []
    assert some or not found
    assert all(word.startswith(line.rpartition(" ")[2]) for word in found)


def test_completion_knows_a_sites_own_choices(empty_folder: Path) -> None:
    (empty_folder / "site" / "topology").mkdir(parents=True)
    (empty_folder / "site" / "topology" / "lab.yaml").touch()
    assert candidates("opensora-launch generate --config-dir site topology=la") == ["topology=lab"]


def test_the_bash_script_completes(empty_folder: Path) -> None:
    bash = shutil.which("bash")
    assert bash
    command = empty_folder / "opensora-launch"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m opensora_launch.cli "$@"\n')
    command.chmod(0o755)
    ask = """
        COMP_LINE=$1; COMP_POINT=${#COMP_LINE}
        COMP_WORDS=(./opensora-launch generate topology = cpu); COMP_CWORD=4
        _opensora_launch; printf '%s\\n' "${COMPREPLY[@]}" """
    done = subprocess.run(
        [bash, "-c", SCRIPT + ask, "bash", "./opensora-launch generate topology=cpu"], capture_output=True, text=True
    )
    assert done.stdout.split() == [f"cpu{n}" for n in range(1, 9)]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_function(verb: str) -> None:
    """A verb is a module of cli/ and a row in the table of verbs: importing the module needs no torch."""
    module = importlib.import_module(f"opensora_launch.cli.{VERBS[verb].module or verb}")
    assert callable(getattr(module, f"{verb}_verb"))
