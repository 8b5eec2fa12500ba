"""image= on the command line: which prompts get a first frame, mistakes, a run that is killed and resumed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.remake import remake_command
from opensora_launch.telemetry.heartbeat import read_heartbeats
from tests.request.test_resume import plan_of
from tests.samples import finish_video

TWO_RANKS = Machine(device="cpu", nodes=1, gpus_per_node=2, cpus_per_node=2)
WORDS = ("model=tiny", "image=tiny")


def planned(words: Sequence[str]) -> tuple[AttemptDir, Plan]:
    attempt = prepare_attempt([*WORDS, *words], TWO_RANKS)
    return attempt, plan_of(attempt.path)


def test_prompts_without_a_reference_get_one_image_a_sample(empty_folder: Path) -> None:
    rows = [
        {"text": "a"},
        {"text": "b", "cond_type": "t2v"},
        {"text": "c", "cond_type": "i2v_head", "seed": 7, "num_samples": 2},
    ]
    Path("list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    attempt, plan = planned(["--prompts", "list.jsonl", "sampling.motion_score=4"])
    assert {v.name: (v.image, v.cond_type) for v in plan.videos} == {
        "0000_0": (True, "i2v_head"),
        "0001_0": (False, "t2v"),
        "0002_0": (True, "i2v_head"),
        "0002_1": (True, "i2v_head"),
    }
    assert plan.images
    assert [(v.name, v.text, v.seed, v.refs) for v in plan.images.videos] == [
        ("0000_0", "a", 42, ()),
        ("0002_0", "c", 7, ()),
        ("0002_1", "c", 8, ()),
    ]
    assert all(v.guidance.distilled and v.guidance.text_scale == 4.0 for v in plan.images.videos)
    assert attempt.run.images.samples.is_dir()
    again = remake_command(attempt.run, plan.videos[3])
    assert again
    assert {"image=tiny", "sampling.seed=8", "sampling.cond_type=i2v_head"} <= set(shlex.split(again))


def test_a_reference_is_not_replaced(empty_folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (96, 64)).save("given.png")
    _, plan = planned(["--prompt", "a", "--ref", "given.png"])
    assert plan.images is None
    assert not plan.videos[0].image


def test_a_resume_makes_only_the_images_that_are_missing(empty_folder: Path) -> None:
    """Nor any of a video that is made, although its image was deleted since."""
    attempt, _ = planned(["--prompt", "a", "--prompt", "b", "--prompt", "c", "--images-only"])
    assert plan_of(attempt.path).videos == ()
    assert len(plan_of(attempt.run.path).videos) == 3
    finish_video(attempt.run.images.path, "0001_0")
    finish_video(attempt.run.path, "0002_0")
    resumed = plan_of(prepare_attempt(["--resume", str(attempt.run)], TWO_RANKS).path)
    assert [v.name for v in resumed.videos] == ["0000_0", "0001_0"]
    assert resumed.images
    assert [v.name for v in resumed.images.videos] == ["0000_0"]
    finish_video(attempt.run.images.path, "0000_0")
    resumed = plan_of(prepare_attempt(["--resume", str(attempt.run)], TWO_RANKS).path)
    assert resumed.images is None


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["image.model.mmdit.context_in_dim=64"], "image.model.mmdit.context_in_dim=64, but model=tiny has 32"),
        (["video.num_frames=1"], "video.num_frames=1 is an image: leave image= out"),
        (["image.guidance=-1"], "image.guidance=-1.0 must be a number of at least 0"),
        (["image.resolution=huge"], "image.resolution=huge is not known; write it as 256px, 768px or 480p"),
        (["image.num_steps=-3"], "the images: sampling.num_steps=-3 must be at least 1"),
        (["image.model.mmdit.num_heads=5"], "the images: model.mmdit.hidden_size=96 is not a multiple"),
        (["engine=colossalai"], "engine=colossalai is not tested with image="),
        (["image=none", "--images-only"], "--images-only: this makes no first frames; choose a model for them: image="),
        (["image.model.init=checkpoint", "image.model.folder=/gone"], "/gone/"),
        (["--image-lora", "gone"], "LoRA {here}/gone does not exist"),
        (["image=none", "--image-lora", "gone"], "--image-lora needs a model for first frames to change: choose one"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], problem: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *WORDS, "topology=cpu1", "--prompt", "x", *words]) == 2
    assert problem.format(here=empty_folder) in capsys.readouterr().err
    assert list(empty_folder.iterdir()) == []


def test_a_missing_image_model_tells_its_download(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["image=flux", "image.model.folder=/gone", "image.model.mmdit.context_in_dim=32"]
    assert main(["generate", "model=tiny", *words, "image.model.mmdit.vec_in_dim=24", "--prompt", "x"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "flux1-dev.safetensors" in line]
    assert "hf download black-forest-labs/FLUX.1-dev" in line
    assert "Non-Commercial" in line


@pytest.mark.slow
def test_killed_after_the_second_image_and_resumed(tmp_path: Path) -> None:
    """Three prompts on two ranks: the same files as without the kill."""
    words = [*WORDS, "topology=cpu2", "image.num_steps=80", "sampling.num_steps=2", "video.num_frames=5"]
    words += ["sampling.batch_size=1", "image.model.mmdit.depth_single_blocks=12"]
    words += [word for text in ("a", "b", "c") for word in ("--prompt", text)]
    command = [sys.executable, "-m", "opensora_launch.cli", "generate"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, *words, f"runs_dir={whole}"], check=True, cwd=tmp_path, capture_output=True)
    started = subprocess.Popen([*command, *words, f"runs_dir={cut}"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while len(list(cut.glob("*/images/samples/*.json"))) < 2:
        assert started.poll() is None, "it ended before the kill"
        time.sleep(0.01)
    (run,) = map(RunDir, cut.iterdir())
    for pid in (started.pid, *(beat.pid for beat in read_heartbeats(run.attempt(0).heartbeats))):
        os.kill(pid, signal.SIGKILL)
    started.wait()
    names = [f"{record.stem}.png" for record in run.images.samples.glob("*.json")]
    made = {name: (run.images.samples / name).stat().st_mtime_ns for name in names}
    assert len(made) == 2, "the third image was there before the kill"
    subprocess.run([*command, "--resume", str(run)], check=True, cwd=tmp_path, capture_output=True)
    (other,) = map(RunDir, whole.iterdir())
    for file in ("samples/*.mp4", "images/samples/*.png"):
        want = {path.name: path.read_bytes() for path in other.path.glob(file)}
        assert len(want) == 3
        assert {path.name: path.read_bytes() for path in run.path.glob(file)} == want
    assert {name: (run.images.samples / name).stat().st_mtime_ns for name in made} == made
