"""The command in a video's metadata names what decides the video, and nothing of where it was made."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.plan.plan import VideoRequest
from opensora_launch.plan.rows import Guidance
from opensora_launch.rundir import RunDir
from opensora_launch.runs.remake import remake_command

WORDS = [
    "model=tiny",
    "--config-dir",
    "cards",
    "topology=2gpu",
    "runs_dir=/home/me",
    "sampling.seed=3,4",
    "layout.dp=1",
]


def a_video(name: str = "0001_1", refs: tuple[str, ...] = ()) -> VideoRequest:
    return VideoRequest(name, "it's, raining", "x", "", refs, "t2v", 43, Guidance(5, 7.5, 3.0, True, True, False))


def a_run(folder: Path, **line: Any) -> RunDir:
    run = RunDir(folder)
    run.overrides.write_text(json.dumps(WORDS))
    lines = [{"videos": ["0000_0"], "settings": {}}, {"videos": ["0001_0", "0001_1"], "settings": {}, **line}]
    run.prompts.write_text("".join(json.dumps(found) + "\n" for found in lines))
    return run


def test_the_command_of_one_video(tmp_path: Path) -> None:
    """The second sample has its own seed. Settings of the prompt and the choice of a sweep go over the command line."""
    run = a_run(tmp_path, settings={"guidance": 3.5, "num_samples": 2}, overrides=["+sampling.num_steps=5"])
    words = shlex.split(remake_command(run, a_video(refs=("a.png",))) or "")
    assert words == [
        "opensora-launch", "generate", "--config-dir", "cards", "model=tiny", "sampling.seed=43",
        "+sampling.num_steps=5", "sampling.guidance=3.5", "--prompt", "it's, raining", "--ref", "a.png",
    ]  # fmt: skip


def test_flags_keep_their_values_and_names_are_left_out(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    flags = ["--lora", "a.safetensors@0.5", "--lora", "b", "--negative-prompt", "x=y, --lora"]
    run.overrides.write_text(json.dumps(["--name", "{prompt}=", *flags, "model=tiny", "fit=strict"]))
    words = shlex.split(remake_command(run, a_video()) or "")
    assert words[2:] == [*flags, "model=tiny", "sampling.seed=43", "--prompt", "it's, raining"]


def test_a_refined_prompt_is_not_refined_again(tmp_path: Path) -> None:
    video = replace(a_video(), refined="heavy rain on a street")
    assert (remake_command(a_run(tmp_path), video) or "").endswith("--prompt 'heavy rain on a street'")


@pytest.mark.parametrize("damage", ["overrides.json", "prompts.jsonl"])
@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_a_folder_without_its_request(tmp_path: Path, damage: str, text: str) -> None:
    run = a_run(tmp_path)
    (tmp_path / damage).write_text(text)
    assert remake_command(run, a_video()) is None
    assert remake_command(run, a_video("0009_0")) is None
