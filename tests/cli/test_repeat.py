"""The command that a report gives to make a run again makes the same videos, whatever was asked."""

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from opensora_launch.cli import main
from opensora_launch.plan.plan import Plan
from opensora_launch.report.run_files import read_recorded_run
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.rundir import RunDir

TINY = ("model=tiny", "video.num_frames=17", "topology=custom", "topology.device=cpu", "topology.gpus_per_node=1")
HOSTILE = 'it\'s "50%" $HOME, `ls` #1; été\n(two lines) {a: 1} ${oc.env:HOME} \u2028'


def planned(words: list[str]) -> tuple[Path, Plan]:
    attempt = prepare_attempt(words).path
    return attempt.parents[1], Plan.from_dict(json.loads((attempt / "plan.json").read_text()))


@pytest.fixture
def picture(empty_folder: Path) -> str:
    Image.new("RGB", (64, 64), "red").save(empty_folder / "a;b.png")
    return "a;b.png"


@pytest.fixture
def prompts(empty_folder: Path, picture: str) -> str:
    rows = [
        {"text": HOSTILE, "num_steps": 3, "guidance": 2.5, "negative_prompt": "dull, grey", "num_samples": 2},
        {"text": "b", "ref": [picture], "motion_score": "7", "name": "second"},
    ]
    (empty_folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "list.jsonl"


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["sampling.seed=null"],
        ["sampling.num_samples=2", "sampling.seed=7", "--negative-prompt", "dark"],
        ["-m", "sampling.num_steps=2,4", "sampling.seed=1,null"],
        ["-m", "sampling.guidance=3.5,5", "sampling.motion_score='2','3'"],
    ],
)
def test_a_run_is_made_again(empty_folder: Path, prompts: str, more: list[str]) -> None:
    words = [*TINY, "--prompt", HOSTILE, "--prompt", "plain", "--prompts", prompts, *more]
    if "-m" in more:  # a sweep is one run where only settings of the videos differ
        words = ["--prompt", HOSTILE, "--prompts", prompts, *TINY, *more]
    run, plan = planned(words)
    command = read_recorded_run(RunDir(run)).command
    assert command is not None
    verb, *again = shlex.split(command)[1:]
    assert verb == "generate"
    other, same = planned(again)
    assert other != run
    assert same.videos == plan.videos
    assert (same.geometry, same.sampling.num_samples) == (plan.geometry, plan.sampling.num_samples)
    (empty_folder / "a;b.png").unlink()
    assert main(["generate", *again, "--strict", "dry_run=true"]) == 2  # its references are where they were


def test_what_one_prompt_cannot_have_is_said(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = planned([*TINY, "--prompt", "a", "-m", "sampling.text_osci=true,false"])
    words = shlex.split(read_recorded_run(RunDir(run)).command or "")[2:]
    assert main(["generate", *words]) == 2
    assert "unknown column 'text_osci'" in capsys.readouterr().err
