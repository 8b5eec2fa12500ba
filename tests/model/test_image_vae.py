"""Flux's image autoencoder: its public names and shapes, its rules, and its tiles on several ranks.

`verify` compares it with the reference's tensors (tests/worker/test_verify.py).
"""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opensora_launch.errors import UserError
from opensora_launch.model.image_vae import image_vae_names
from opensora_launch.model.shapes import config_problems, vae_shapes
from opensora_launch.model.vae import decode_latents, empty_vae, encode_pixels, load_vae, posterior_mean
from opensora_launch.model.weights import random_tensors
from opensora_launch.parallel.mesh import Groups, build_meshes
from opensora_launch.parallel.tile_spreading import spread_tiles
from opensora_launch.plan.geometry import geometry_problems
from opensora_launch.plan.layout import Layout
from opensora_launch.schema.autoencoder import VaeConfig, VaeKind
from opensora_launch.schema.config import ModelConfig, VideoConfig
from opensora_launch.worker.verify import unrecorded
from tests.ranks import run_ranks

CASE = Path(__file__).parents[1] / "reference" / "ae2d_tiny.json"
PUBLIC = VaeConfig(VaeKind.image, scale_factor=0.3611, shift_factor=0.1159, tile_px=None)
CFG = replace(PUBLIC, latent_channels=4, block_out_channels=[32, 64, 64, 64])


def case() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights and the other tensors."""
    tensors, prefix = load_file(CASE.with_suffix(".safetensors")), json.loads(CASE.read_text())["vae"]["prefix"]
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return weights, {k: v for k, v in tensors.items() if not k.startswith(prefix)}


@pytest.mark.parametrize("cfg", [CFG, PUBLIC, replace(PUBLIC, layers_per_block=1)], ids=["tiny", "public", "shallow"])
def test_every_weight_has_one_public_name(cfg: VaeConfig) -> None:
    """A product of the module is a 1 x 1 convolution in the file."""
    own, want, names = empty_vae(cfg).state_dict(), vae_shapes(cfg), image_vae_names(cfg)
    assert set(names) == set(own)
    assert sorted(names.values()) == sorted(want)
    assert all(own[name].shape == torch.Size(want[public])[: own[name].ndim] for name, public in names.items())


def test_shapes_are_those_of_the_references_file() -> None:
    assert {name: tuple(x.shape) for name, x in case()[0].items()} == vae_shapes(CFG)


def test_public_and_own_names_are_the_same_weights() -> None:
    weights, given = case()
    by_public = load_vae(CFG, weights)
    again = load_vae(CFG, by_public.state_dict())
    pixels = decode_latents(again, CFG, given["latent"])
    assert pixels is not None
    torch.testing.assert_close(pixels, given["decode"], rtol=1e-4, atol=1e-4)


def test_what_is_missing_is_named() -> None:
    weights, _ = case()
    del weights["encoder.conv_in.bias"]
    with pytest.raises(UserError, match=r"1 missing: layers\.encoder\.conv_in\.bias"):
        load_vae(CFG, weights | {"decoder.conv_in.weight": weights["decoder.conv_in.weight"][:, :2]})


def test_random_weights_keep_the_size_of_activations() -> None:
    tensors = random_tensors(empty_vae(CFG), seed=0, dtype=torch.float32, device=torch.device("cpu"))
    latent = torch.randn(1, 4, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    pixels = decode_latents(load_vae(CFG, tensors), CFG, latent)
    assert pixels is not None
    assert pixels.shape == (1, 3, 1, 32, 48)
    assert bool(pixels.isfinite().all())
    assert 0.2 < float(pixels.std()) < 5.0


def on_rank(latent: Tensor, image: Tensor, cfg: VaeConfig) -> tuple[Tensor | None, Tensor | None]:
    layout = Layout(ulysses=torch.distributed.get_world_size())
    mesh = build_meshes([layout], torch.distributed.get_rank(), Groups(timedelta(seconds=60)), unrecorded)[layout]
    vae, run = load_vae(CFG, case()[0]), spread_tiles(mesh.video)
    moments = encode_pixels(vae, cfg, image, run)
    return decode_latents(vae, cfg, latent, run), None if moments is None else posterior_mean(CFG, moments)


def test_tiles_on_three_ranks_are_those_of_one(tmp_path: Path) -> None:
    given, tiled = case()[1], replace(CFG, tile_px=64)
    ((alone, latent_alone),) = run_ranks(1, tmp_path, on_rank, given["latent"], given["pixels"], tiled)
    (shown, latent), *others = run_ranks(3, tmp_path, on_rank, given["latent"], given["pixels"], tiled)
    assert others == [(None, None)] * 2
    assert torch.equal(shown, alone)
    assert torch.equal(latent, latent_alone)
    assert not torch.allclose(shown, given["decode"], atol=1e-3), "tiles change the picture, so they are approximate"


def test_only_images_and_four_levels() -> None:
    model = ModelConfig(vae=PUBLIC)
    (problem,) = geometry_problems(VideoConfig("256px", num_frames=5), model)
    assert problem == "video.num_frames=5 must be 1: the model makes images"
    assert geometry_problems(VideoConfig("256px", num_frames=1), model) == []
    (problem,) = config_problems(ModelConfig(vae=replace(PUBLIC, block_out_channels=[32, 64])))
    assert problem == "model.vae.block_out_channels=[32, 64] must have 4 entries, for 8 pixels per latent"
