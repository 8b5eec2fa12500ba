"""`dry_run=true` shows the plan and the command, and writes nothing."""

from pathlib import Path

import pytest

from opensora_launch.cli import main


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["generate", *argv, "dry_run=true"]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_plan_of_open_sora_at_768px_on_8_gpus(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "--prompt", "raining, sea", "model=open_sora_v2", "video=768px", "topology=8gpu")
    assert "1024 x 576 pixels, 129 frames at 24 fps" in out
    assert "76,544 = 512 text + 76,032 video" in out
    assert "30 steps of 2, 20 steps of 1: 80 row-forwards; the reference computes 150, 1.875x fewer" in out
    assert "layout, 2 rows dp1 cfg2" in out
    assert "8 (GPUs)" in out
    assert "--nproc-per-node 8 -m opensora_launch.worker --attempt" in out
    assert "this machine cannot run it:" in out
    assert "none is visible here" in out
    assert "Open_Sora_v2.safetensors, " in out
    assert list(empty_folder.iterdir()) == []


def test_without_a_prompt_one_is_made_up(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys)
    assert "(no prompt given)" in out
    assert "this machine cannot run it" not in out
    assert list(empty_folder.iterdir()) == []


def test_inline_is_a_plain_command(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "--prompt", "x", "model=tiny", "topology=cpu1", "launcher=inline")
    assert "torch.distributed.run" not in out
    assert "-m opensora_launch.worker --attempt" in out


def test_pruning_can_be_off(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "--prompt", "x", "model=tiny", "sampling.prune_rows=false")
    assert "6 steps of 3: 18 row-forwards; the reference computes 18" in out


def test_two_nodes_say_how_to_start_them(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "--prompt", "x", "model=tiny", "topology=2x8")
    assert "16 (GPUs on 2 nodes)" in out
    assert "torchrun --nnodes 2 --nproc-per-node 8" in out


def test_a_plan_that_cannot_be_is_still_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "model=tiny", "dry_run=true", "layout.cfg=3", "topology=cpu2"]) == 2
    assert "layout.cfg=3" in capsys.readouterr().err
