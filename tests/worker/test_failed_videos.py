"""A video that cannot be made fails alone, on real ranks: it is recorded, and the others are made."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

import opensora_launch
from opensora_launch.cli import main
from opensora_launch.errors import UserError
from opensora_launch.media.references import load_references
from opensora_launch.model.vae import Region
from opensora_launch.plan.plan import Plan
from opensora_launch.rundir import RunDir
from opensora_launch.runs.finished_videos import failed_videos
from opensora_launch.worker import decode_videos, denoise_videos, encode_references
from opensora_launch.worker import run as worker_run
from opensora_launch.worker.context import RankContext
from opensora_launch.worker.load_networks import Networks, load_as_planned
from tests.media.clips import noise, write_image
from tests.ranks import run_command, run_ranks
from tests.worker.plans import small_plan, video
from tests.worker.test_generate import on_rank, prepare

NAN = float("nan")
VIDEOS = [video("0000_0", 1, steps=1), video("0001_0", 2, steps=1), video("0002_0", 3, steps=1)]


def poison_vae(attempt: str, plan: Plan) -> None:
    """One number of the VAE's decoder is NaN."""

    def poisoned(ctx: RankContext) -> Networks:
        networks = load_as_planned(ctx)
        networks.vae.like.data.view(-1)[0] = NAN
        return networks

    with patch.object(worker_run, "load_as_planned", poisoned):
        on_rank(attempt, plan)


def poison_second_video(attempt: str, plan: Plan) -> None:
    """One number of the last region that the first rank gets is infinite."""
    decode, calls = decode_videos.decode_latent, list[Any]()

    def last_is_infinite(regions: Iterator[Region]) -> Iterator[Region]:
        *first, last = regions
        last.values.view(-1)[-1] = -torch.inf
        yield from [*first, last]

    def poisoned(*args: Any) -> Any:
        calls.append(args)
        grid, regions = decode(*args)
        return grid, regions if regions is None or len(calls) != 2 else last_is_infinite(regions)

    with patch.object(decode_videos, "decode_latent", poisoned):
        on_rank(attempt, plan)


def lose_file_on_last_rank(attempt: str, plan: Plan) -> None:
    def lost(refs: tuple[str, ...], *args: Any) -> Any:
        if refs[0].endswith("b.png") and dist.get_rank() == dist.get_world_size() - 1:
            raise UserError(f"ref {refs[0]}: no such file")
        return load_references(refs, *args)

    with patch.object(encode_references, "load_references", lost):
        on_rank(attempt, plan)


def poison_latents_on_last_rank(attempt: str, plan: Plan) -> None:
    """One number of the second video of each batch is NaN there."""
    denoise = denoise_videos.denoise_batch

    def poisoned(*args: Any) -> Any:
        latents = denoise(*args)
        if dist.get_rank() == dist.get_world_size() - 1:
            latents[1].view(-1)[7] = NAN
        return latents

    with patch.object(denoise_videos, "denoise_batch", poisoned):
        on_rank(attempt, plan)


def outcome(run: Path) -> tuple[list[str], dict[str, str]]:
    return sorted(path.name for path in (run / "samples").glob("*.*")), failed_videos(RunDir(run))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_vae_that_makes_nan_is_named(ranks: int, tmp_path: Path) -> None:
    plan = small_plan(ranks, VIDEOS[:2], frames=1)
    run_ranks(ranks, tmp_path, poison_vae, str(prepare(plan, tmp_path)), plan, timeout=60.0)
    reason = "its decoded pixels are not finite: the VAE of random weights in fp32; check the file"
    assert outcome(tmp_path) == ([], {"0000_0": reason, "0001_0": reason})


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_others_are_made(ranks: int, tmp_path: Path) -> None:
    plan = small_plan(ranks, VIDEOS, frames=1)
    run_ranks(ranks, tmp_path, poison_second_video, str(prepare(plan, tmp_path)), plan, timeout=60.0)
    made, failed = outcome(tmp_path)
    assert made == ["0000_0.json", "0000_0.png", "0002_0.json", "0002_0.png"]
    assert list(failed) == ["0001_0"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_latents_that_are_not_finite_fail_their_video_on_all(ranks: int, tmp_path: Path) -> None:
    """The others of its batch are made."""
    plan = small_plan(ranks, VIDEOS, frames=1, batch_size=3)
    run_ranks(ranks, tmp_path, poison_latents_on_last_rank, str(prepare(plan, tmp_path)), plan, timeout=60.0)
    made, failed = outcome(tmp_path)
    assert made == ["0000_0.json", "0000_0.png", "0002_0.json", "0002_0.png"]
    assert failed == {"0001_0": "its latents are not finite: the transformer in fp32; check its file"}


def test_a_file_that_one_rank_does_not_see_fails_its_video_on_all(tmp_path: Path) -> None:
    """The three are one batch, which goes on without it."""
    refs = [str(write_image(tmp_path / f"{name}.png", noise(48, 80, 3))) for name in "abc"]
    videos = [replace(v, refs=(ref,), cond_type="i2v_head") for v, ref in zip(VIDEOS, refs, strict=True)]
    plan = small_plan(2, videos, frames=5, batch_size=3)
    run_ranks(2, tmp_path, lose_file_on_last_rank, str(prepare(plan, tmp_path)), plan, timeout=60.0)
    made, failed = outcome(tmp_path)
    assert made == [f"000{n}_0.{end}" for n in (0, 2) for end in ("json", "mp4", "sheet.png")]
    assert list(failed) == ["0001_0"]
    assert failed["0001_0"].startswith(f"ref {refs[1]}: no such file (on ")


@pytest.mark.slow
def test_a_damaged_checkpoint_of_the_vae(tmp_path: Path) -> None:
    """The command ends with exit code 1 and without a black video. Weights that were never written are warned of."""
    shutil.copytree(Path(opensora_launch.__file__).parent / "demo" / "ckpts", tmp_path / "ckpts")
    (file,) = (tmp_path / "ckpts").glob("*vae*.safetensors")
    tensors = load_file(file)
    tensors["decoder.conv_in.conv.weight"].view(-1)[3] = NAN
    tensors["encoder.conv_out.conv.weight"].zero_()
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, file)
    mmdit = file.with_name("Open_Sora_v2.safetensors")
    tensors = load_file(mmdit)
    for name in ("double_blocks.0.img_mlp.0.weight", "txt_in.weight", "double_blocks.0.img_mlp.0.bias"):
        tensors[name].fill_(0.25)
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, mmdit)
    words = ["model=demo", f"model.folder={tmp_path / 'ckpts'}", "topology=cpu1", "sampling.num_steps=1"]
    words += ["video.num_frames=1", "model.vae_prefix=module.", "model.mmdit_prefix=_orig_mod."]
    code, out, err = run_command(tmp_path, "generate", "--prompt", "a", *words)
    assert code == 1
    assert f"0000_0 failed: its decoded pixels are not finite: the VAE {file.name} in fp32; check the file\n" in err
    (run,) = (tmp_path / "runs").iterdir()
    assert list((run / "samples").iterdir()) == []
    assert f"continue with --resume {run}" in err
    assert str(run) in out
    log = (run / "attempts/0/logs/rank0.log").read_text()
    assert f"{mmdit}: weights that are one number all over: 2, such as double_blocks.0.img_mlp.0.weight. The f" in log
    assert f"{file}: weights that are one number all over: 1, such as encoder.conv_out.conv.weight. The f" in log
    assert f"{mmdit}: 2 weights are one number all over, such as double_blocks.0.img_mlp.0.weight; the file may" in err
    assert f"{file}: 1 weight is one number all over, such as encoder.conv_out.conv.weight; the file may be" in err
    assert main(["report", str(run)]) == 0
    found = json.loads((run / "report.json").read_text())["attempts"][0]["findings"]
    damaged = [(f["file"], f["count"], f["ranks"]) for f in found if f["code"] == "constant_weights"]
    assert damaged == [(str(mmdit), 2, [0]), (str(file), 1, [0])]
    assert "1 weight is one number all over, such as encoder" in (run / "report.md").read_text().replace("\\", "")
