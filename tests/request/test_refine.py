"""--refine-command: a local program rewrites prompts once, before any rank starts; both texts are recorded."""

import json
import shlex
from pathlib import Path

import pytest

from opensora_launch.cli import generate, main
from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.request.attempt import by_hand, prepare_attempt, write_planned
from opensora_launch.request.flags import GENERATE_FLAGS, parse
from opensora_launch.request.prepare import prepare_runs
from opensora_launch.request.refine import ANSWER_BYTES, _answer
from opensora_launch.rundir import RunDir
from tests.ranks import run_command
from tests.request.test_output import ONE_RANK
from tests.request.test_prompts import written

WORDS = ["model=tiny", "topology=cpu1"]


@pytest.fixture
def asked(empty_folder: Path) -> Path:
    """The folder of a program that makes a prompt long, with one file for each time that it was asked."""
    (empty_folder / "asked").mkdir()
    program = empty_folder / "my refiner"
    program.write_text(
        '#!/bin/sh\ncat > "$(mktemp asked/XXXXXX)"\ncat asked/* > /dev/null\necho "  $1, in detail "\necho\n'
    )
    program.chmod(0o755)
    return empty_folder / "asked"


def planned(*words: str) -> Plan:
    return prepare_runs(parse("generate", GENERATE_FLAGS, [*words, *WORDS]), ONE_RANK).runs[0].plan


def test_each_distinct_prompt_is_asked_once_and_both_texts_are_kept(asked: Path) -> None:
    """Without a shell: nothing in the command or in a prompt is expanded. The typed prompt is in the names."""
    prompts = ["$HOME; `id`", "rain", "$HOME; `id`"]
    flags = [word for text in prompts for word in ("--prompt", text)]
    command = "'./my refiner' '$HOME *'"
    words = [*flags, "--refine-command", command, "-m", "sampling.num_steps=1,2", "--name", "{prompt}"]
    (run,) = prepare_runs(parse("generate", GENERATE_FLAGS, [*words, *WORDS]), ONE_RANK).runs
    assert sorted(path.read_text() for path in asked.iterdir()) == ["$HOME; `id`", "rain"]
    for video in run.plan.videos:
        assert video.prompt in prompts
        assert video.refined == "$HOME *, in detail"
        assert video.text == "$HOME *, in detail. 24 FPS. 4 motion score."
        assert video.name.startswith(("$HOME; `id`", "rain"))
    line = run.record.prompts[0]
    assert (line["text"], line["refined"], line["refined_by"]) == ("$HOME; `id`", "$HOME *, in detail", command)
    assert "--refine-command" not in run.record.argv


def test_only_what_is_made_is_asked_for(asked: Path, empty_folder: Path) -> None:
    """Not rows outside of the slice, with references that cannot be used, or refined by their file already."""
    rows = "text,ref,refined\nrain,,\nsun,gone.png,\nfog,,dense fog\nsnow,,\n"
    (empty_folder / "list.csv").write_text(rows)
    plan = planned("--prompts", "list.csv", "--end", "3", "--refine-command", "'./my refiner' x")
    assert [path.read_text() for path in asked.iterdir()] == ["rain"]
    assert [(v.prompt, v.refined) for v in plan.videos] == [("rain", "x, in detail"), ("fog", "dense fog")]
    assert plan.videos[1].text.startswith("dense fog. ")


def test_nothing_is_asked_before_all_else_is_right_or_in_a_dry_run(
    asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompt", "rain", "--refine-command", "'./my refiner' x", *WORDS]
    assert main(["generate", *words, "layout.ring=3"]) == 2
    assert main(["generate", *words, "dry_run=true"]) == 0
    assert list(asked.iterdir()) == []


def test_a_resumed_run_does_not_ask_again(
    asked: Path, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does one that is made from the list of another run. The program is gone."""
    words = ["--prompt", "rain", "--refine-command", "'./my refiner' x", "--output", "out"]
    (run,) = prepare_runs(parse("generate", GENERATE_FLAGS, [*words, *WORDS]), ONE_RANK).runs
    folder = RunDir(empty_folder / "out")
    write_planned(run, by_hand())
    (empty_folder / "my refiner").unlink()
    plans = list[Plan]()

    def start(kind: object, plan: Plan, *_: object) -> int:
        plans.append(plan)
        return 0

    monkeypatch.setattr(generate, "start_run", start)
    assert main(["generate", "--resume", "out"]) == 0
    assert [(v.prompt, v.refined) for v in plans[0].videos] == [("rain", "x, in detail")]
    _, again, _ = written(["--prompts", str(folder.prompts), "model=tiny"])
    assert again.videos == run.plan.videos
    assert main(["generate", "--resume", "out", "--refine-command", "cat"]) == 2
    assert "--refine-command does not go with --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'no model' >&2; echo; exit 3", "it ended with exit code 3: no model"),
        ("kill -9 $$", "it was killed by SIGKILL"),
        ("true", "it printed nothing"),
        ("printf ' \\n '", "it printed nothing"),
        ("printf 'a\\377'", "what it printed is not UTF-8 at byte 1"),
        ("yes", f"it printed more than {ANSWER_BYTES // 1024} KiB"),
    ],
)
def test_an_answer_that_cannot_be_used_is_one_line(
    script: str, said: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "a prompt of more characters than a message shows"
    command = shlex.join(["sh", "-c", script])
    assert main(["generate", "--prompt", prompt, "--refine-command", command, *WORDS]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --refine-command {command}, for the prompt '{prompt[:40]}...': {said}")
    assert not (empty_folder / "runs").exists()


@pytest.mark.parametrize("script", ["sleep 600", "sleep 600 & exit 0", "echo x; exec >&-; sleep 600"])
def test_a_program_that_does_not_end_is_ended_with_what_it_started(script: str) -> None:
    with pytest.raises(UserError, match=r"it was not done within 0\.2 s, and was ended"):
        _answer(["sh", "-c", script], "rain", limit_s=0.2)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("gone -x", "--refine-command gone -x: there is no program gone here that can be run"),
        ("'a", "--refine-command 'a: No closing quotation; quote it as for a shell"),
        ("", "--refine-command is empty; give a program with its arguments"),
    ],
)
def test_a_command_that_cannot_be_run_is_said_with_all_else(
    command: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--prompt", "x", "--refine-command", command, "video=no", *WORDS]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert f"  - {said}" in lines
    assert any("video=no" in line for line in lines)


def test_ranks_started_by_hand_do_not_wait_for_it() -> None:
    with pytest.raises(UserError, match="ranks take a prompt file with a column 'refined'"):
        prepare_attempt(["--prompt", "x", "--refine-command", "cat", "model=tiny"], Machine("cpu", 1, 1, 1))


@pytest.mark.slow
def test_a_run_says_both(asked: Path, empty_folder: Path) -> None:
    """In its record and in the file itself; the command in it makes the video again without the program."""
    import av

    words = [*WORDS, "launcher=inline", "sampling.num_steps=1", "video.num_frames=5"]
    refine = ["--refine-command", "'./my refiner' 비"]
    code, _, said = run_command(empty_folder, "generate", *words, "--prompt", "rain", *refine, "--output", "out")
    assert code == 0, said
    record = json.loads((empty_folder / "out/samples/0000_0.json").read_text())
    assert (record["prompt"], record["refined"]) == ("rain", "비, in detail")
    with av.open(str(empty_folder / "out/samples/0000_0.mp4")) as container:
        about = dict(container.metadata)
    assert about["title"] == "rain"
    assert json.loads(about["description"])["refined"] == "비, in detail"
    again = shlex.split(about["comment"])
    assert again[:2] == ["opensora-launch", "generate"]
    code, _, said = run_command(empty_folder, *again[1:], "topology=cpu1", "launcher=inline", "--output", "again")
    assert code == 0, said
    frames = [[f.to_ndarray() for f in av.open(str(p)).decode(video=0)] for p in empty_folder.glob("*/samples/*.mp4")]
    assert len(frames) == 2
    assert all((one == other).all() for one, other in zip(*frames, strict=True))
