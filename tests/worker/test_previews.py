"""Previews while denoising: they show where the latents go, and change nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional

from opensora_launch.model.vae import decode_latents, load_vae
from opensora_launch.model.weights import read_tensors
from opensora_launch.plan.checks import early_problems
from opensora_launch.report.build import build_report
from opensora_launch.rundir import RunDir
from opensora_launch.runs.files import newest_preview, previews_of
from opensora_launch.sampling.latents import pack
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.config import LayoutConfig, RunConfig
from opensora_launch.worker.previews import Previews, fit_projection, projected, side_by_side
from tests.worker.plans import small_plan, video
from tests.worker.test_generate import make

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        pytest.param(1, LayoutConfig(dp=1), id="1 rank"),
        pytest.param(2, LayoutConfig(dp=1, ring=2), id="ring2"),
        pytest.param(4, LayoutConfig(dp=2, cfg=2), id="dp2 x cfg2", marks=pytest.mark.slow),
    ],
)
def test_the_video_is_the_same_with_previews(ranks: int, layout: LayoutConfig, tmp_path: Path) -> None:
    videos = [video("0000_0", steps=5), video("0001_0", seed=7, steps=5)]
    plan = small_plan(ranks, videos, layout=layout, batch_size=1)
    without = make(plan, tmp_path / "without")
    assert make(replace(plan, preview_every_steps=2), tmp_path / "with") == without
    run = RunDir(tmp_path / "with")
    shown = {name: [path.name for path in paths] for name, paths in previews_of(run).items()}
    assert shown == {name: ["step0002.png", "step0004.png"] for name in without}
    assert newest_preview(run) in [path for paths in previews_of(run).values() for path in paths]
    report = build_report(run.path)
    assert report["previews"]["0001_0"] == ["previews/0001_0/step0002.png", "previews/0001_0/step0004.png"]
    spent = [rank["previews_s"] for rank in report["attempts"][0]["ranks"]]
    firsts = {0, 2} if ranks == 4 else {0}
    assert {rank for rank, seconds in enumerate(spent) if seconds > 0} == firsts
    assert all(rank["previews_s"] <= rank["parts"]["other"] for rank in report["attempts"][0]["ranks"])
    assert not RunDir(tmp_path / "without").previews.exists()


def test_a_preview_shows_where_the_last_step_leads(tmp_path: Path) -> None:
    """On a straight line from noise to the video, that is the video, at any step; nothing is shown of the last one."""
    plan = replace(small_plan(1, [video()]), preview_every_steps=1)
    shape = plan.geometry
    generator = torch.Generator().manual_seed(3)
    size = (1, plan.model.vae.latent_channels, shape.latent_frames, shape.latent_height, shape.latent_width)
    noise, end = (torch.randn(size, generator=generator) for _ in range(2))
    projection = torch.randn(plan.model.vae.latent_channels + 1, 3, generator=generator) / 4
    previews = Previews(plan, RunDir(tmp_path), projection)
    times = [1.0, 0.7, 0.4, 0.0]
    at = [pack(t * noise + (1 - t) * end, plan.model.mmdit.patch_size) for t in times]
    previews.begin(at[0])
    assert [previews.after_step([video()], times, done, at[done]) for done in (1, 2, 3)] == [True, True, False]
    want = np.asarray(side_by_side(projected(end[0], projection)), dtype=int)
    made = previews_of(RunDir(tmp_path))["0000_0"]
    assert [path.name for path in made] == ["step0001.png", "step0002.png"]
    for path in made:
        assert np.abs(np.asarray(Image.open(path), dtype=int) - want).max() <= 1


def test_latents_that_are_not_finite_are_grey() -> None:
    latents = torch.full((4, 1, 2, 2), float("nan"))
    assert set(projected(latents, torch.ones(5, 3)).flatten().tolist()) == {128}


def test_a_projection_is_fitted_to_the_vae() -> None:
    """It tells half of what the demo's VAE makes of latents, and is the same each time."""
    cfg = VaeConfig(**yaml.safe_load((ROOT / "configs/model/demo.yaml").read_text())["vae"])
    file = ROOT / "opensora_launch/demo/ckpts/hunyuan_vae.safetensors"
    vae = load_vae(cfg, read_tensors(file, device=torch.device("cpu"), dtype=torch.float32, prefix=""))
    state = torch.get_rng_state()
    projection = fit_projection(vae, cfg)
    assert torch.equal(projection, fit_projection(vae, cfg))
    assert torch.equal(torch.get_rng_state(), state), "noise of other places would change"
    latents = torch.randn(1, cfg.latent_channels, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    pixels = decode_latents(vae, cfg, latents)
    assert pixels is not None
    means = functional.adaptive_avg_pool3d(pixels[:, :, ::4], (3, 16, 16))[0]
    told = torch.einsum("cthw,cr->rthw", latents[0], projection[:-1]) + projection[-1][:, None, None, None]
    assert (told - means).square().mean() < 0.6 * (means - means.mean(dim=(1, 2, 3), keepdim=True)).square().mean()


def test_a_number_of_steps_below_none_is_refused() -> None:
    problems = early_problems(RunConfig(preview_every_steps=-1), "cpu", 1, 1)
    assert "preview_every_steps=-1 must be at least 0 (0: no previews)" in problems
