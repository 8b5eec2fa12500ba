"""LoRAs on the command line: --lora and model.lora, whole runs and their resume."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from opensora_launch.cli import main
from tests.model.test_lora import pair_of
from tests.ranks import run_command


@pytest.mark.slow
def test_a_run_with_loras_and_its_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may be relative to where the run was started; the run keeps it. Other LoRAs would be another video."""
    save_file(pair_of(name="single_blocks.0.q_proj"), tmp_path / "mine.safetensors")
    words = ["model=tiny", "topology=cpu1", "launcher=inline", "sampling.num_steps=1", "video.num_frames=1"]
    base = run_command(tmp_path, "generate", *words, "runs_dir=base", "--prompt", "x")
    changed = run_command(
        tmp_path, "generate", *words, "runs_dir=lora", "--prompt", "x", "--lora", "mine.safetensors@3"
    )
    assert (base[0], changed[0]) == (0, 0), changed[2]
    (plain_image,), (image,) = ([*(tmp_path / name).glob("*/samples/*.png")] for name in ("base", "lora"))
    bits = image.read_bytes()
    assert bits != plain_image.read_bytes()
    record = image.with_suffix(".json")
    assert json.loads(record.read_text())["model"]["lora"] == [f"{tmp_path}/mine.safetensors@3"]
    image.unlink()
    record.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = str(image.parents[1])
    monkeypatch.chdir(elsewhere)
    assert main(["generate", "--resume", run, "model.lora=[]", "dry_run=true"]) == 2
    assert run_command(elsewhere, "generate", "--resume", run)[0] == 0
    assert image.read_bytes() == bits


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--lora", "gone"], "LoRA {here}/gone does not exist; give a folder by PEFT or a safetensors file"),
        (["--lora", "."], "LoRA the folder {here} holds no adapter_model.safetensors; give a folder by PEFT"),
        (["--lora", "a@nan"], "the strength behind @ must be a finite number"),
        (["model.lora=[gone]"], "LoRA {here}/gone does not exist"),
        (["lora=gone"], "--lora"),
        (["engine=colossalai", "--lora", "gone"], "engine=colossalai is not tested with LoRAs"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], problem: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "model=tiny", "topology=cpu1", "--prompt", "x", *words]) == 2
    assert problem.format(here=empty_folder) in capsys.readouterr().err
    assert list(empty_folder.iterdir()) == []
