"""How many rows the model is really given, for the shipped settings."""

from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch

from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.parallel.mesh import Groups, build_meshes
from opensora_launch.parallel.sharded_model import ShardedModel
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.rows import Guidance
from opensora_launch.sampling.latents import position_ids
from opensora_launch.sampling.schedule import timesteps
from opensora_launch.worker.denoise_videos import Batch, denoise_batch
from tests.ranks import run_ranks

FRAMES, CPU = 5, torch.device("cpu")


def unrecorded(*args):
    return nullcontext()


def forwards(has_condition: bool, prune: bool) -> tuple[int, torch.Tensor]:
    """Rows that a model is given over 50 steps, and the latents. Its output depends on all of a row's inputs."""
    mesh = build_meshes([Layout()], 0, Groups(timedelta(seconds=30)), unrecorded)[Layout()]
    given = 0

    def forward(*, img, txt, cond, timesteps, **rest):
        nonlocal given
        given += img.shape[0]
        return 0.1 * img + (txt.mean(dim=(1, 2)) * timesteps)[:, None, None] + cond[..., :2]

    tokens, rng = FRAMES * 4, torch.Generator().manual_seed(0)
    text, negative = (torch.randn(3, 6, generator=rng) for _ in range(2))
    vec = torch.zeros(4)
    cond = torch.randn(tokens, 3, generator=rng) if has_condition else torch.zeros(tokens, 3)
    batch = Batch(
        name="0000_0",
        latents=torch.randn(1, tokens, 2, generator=rng),
        img_ids=position_ids(FRAMES, 2, 2, CPU),
        branches=[((text, vec, cond), (negative, vec, cond), (negative, vec, torch.zeros(tokens, 3)))],
        guidance=Guidance(50, 7.5, 3.0, text_osci=True, image_osci=True, temporal_osci=has_condition),
        times=timesteps(50, 4, FRAMES, shift=True, flow_shift=None),
        latent_frames=FRAMES,
        prune=prune,
    )
    kernel = choose_kernel("reference", device=CPU, dtype=torch.float32, head_dim=8).call
    model = ShardedModel(forward, kernel, dict.fromkeys((1, 2, 3), mesh))
    latents = denoise_batch(batch, model, unrecorded)
    return given, latents


@pytest.mark.parametrize(("has_condition", "rows"), [(False, 80), (True, 110)], ids=["t2v", "i2v"])
def test_row_forwards_of_the_shipped_settings(has_condition, rows, tmp_path):
    ((given, pruned),) = run_ranks(1, tmp_path, forwards, has_condition, True)
    ((given_by_reference, full),) = run_ranks(1, tmp_path, forwards, has_condition, False)
    assert (given, given_by_reference) == (rows, 150)
    torch.testing.assert_close(pruned, full, rtol=1e-4, atol=1e-4)
