"""The Video DC-AE equals the reference's, whole and in tiles; its shapes, its rules, and runs with it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from opensora_launch.media.video import save_png
from opensora_launch.model.shapes import config_problems, vae_shapes
from opensora_launch.model.vae import decode_latents, empty_vae, encode_pixels, load_vae, posterior_sample
from opensora_launch.model.video_dc_ae import Conv, Rms
from opensora_launch.plan.geometry import geometry_problems
from opensora_launch.plan.networks import OPEN_SORA_2_DC_AE
from opensora_launch.plan.video_size import VideoSize
from opensora_launch.request.compose import compose
from opensora_launch.schema.autoencoder import DcAeConfig, VaeConfig, VaeKind
from opensora_launch.schema.config import MmditConfig, ModelConfig, VideoConfig
from opensora_launch.schema.tiles import decode_grid, encode_grid
from tests.ranks import run_command
from tests.worker.test_generate import frames_of

CASE = Path(__file__).parents[1] / "reference" / "dcae_tiny.json"
SPEC = json.loads(CASE.read_text())["vae"]
TENSORS = load_file(CASE.with_suffix(".safetensors"))
STAGES = DcAeConfig([8, 16, 16, 32, 32, 32], [1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1])
CFG = VaeConfig(VaeKind.dc_ae, STAGES, latent_channels=8, scale_factor=1.0)
FIVE = VaeConfig(
    VaeKind.dc_ae, DcAeConfig([8, 16, 16, 32, 32], [1, 1, 2, 1, 1], [1] * 5), latent_channels=8, tile_px=64
)
FOUR = VaeConfig(VaeKind.dc_ae, DcAeConfig([8, 16, 16, 32], [1] * 4, [1] * 4), latent_channels=8, tile_px=None)
UNCUT, SPATIAL = replace(CFG, tile_px=None), replace(CFG, tile_px=128)
TEMPORAL = replace(UNCUT, tile_frames=16)
TILINGS = {"untiled": UNCUT, "spatial": SPATIAL, "temporal": TEMPORAL, "image_T1": UNCUT}
TILINGS["both"] = replace(SPATIAL, tile_frames=16)


@pytest.mark.parametrize("name", [n for n in TENSORS if n.startswith(("decode.", "encode."))])
def test_it_is_the_references(name: str) -> None:
    vae = load_vae(CFG, {k.removeprefix("weight."): v for k, v in TENSORS.items() if k.startswith("weight.")})
    way, variant = name.split(".")[:2]
    given = TENSORS["latent" if way == "decode" else "pixels"]
    given = given[:, :, :1] if variant == "image_T1" else given
    if way == "decode":
        got = decode_latents(vae, TILINGS[variant], given)
    else:
        moments = encode_pixels(vae, TILINGS[variant], given)
        assert moments is not None
        got = posterior_sample(CFG, moments, torch.Generator())  # nothing is drawn
    assert got is not None
    torch.testing.assert_close(got, TENSORS[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cfg", [CFG, FIVE, FOUR, OPEN_SORA_2_DC_AE.vae], ids=["tiny", "five", "four", "public"])
def test_shapes_are_the_modules(cfg: VaeConfig) -> None:
    assert {name: tuple(x.shape) for name, x in empty_vae(cfg).state_dict().items()} == vae_shapes(cfg)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
def test_one_frame_meets_the_middle_tap(dtype: torch.dtype, stride: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    conv, x = Conv(3, 16, stride=stride), torch.randn(8, 3, 1, 16, 16).to(dtype)
    wanted = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, 1, 1))  # a frame more on both sides, of zeros
    wanted = torch.nn.functional.conv3d(wanted, conv.conv.weight, conv.conv.bias, stride, (0, 1, 1))
    close = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(conv.to(dtype)(x).float(), wanted, rtol=close, atol=close)


@pytest.mark.parametrize(("cfg", "stride"), [(FIVE, 16), (FOUR, 8)])
def test_fewer_stages_compress_less_in_space_and_as_much_in_time(cfg: VaeConfig, stride: int) -> None:
    """The videos' sizes, the tiles and the module all follow the number of stages."""
    assert cfg.stride_px == stride
    vae = load_vae(cfg, {name: torch.full(shape, 0.01) for name, shape in vae_shapes(cfg).items()})
    latent = encode_pixels(vae, cfg, torch.ones(1, 3, 8, 96, 64))
    assert latent is not None
    assert latent.shape == (1, 8, 2, 96 // stride, 64 // stride)
    back = decode_latents(vae, cfg, latent)
    assert back is not None
    assert back.shape == (1, 3, 8, 96, 64)
    model = ModelConfig(mmdit=MmditConfig(in_channels=8, patch_size=1), vae=cfg)
    assert config_problems(model) == []
    assert geometry_problems(VideoConfig(None, height_px=96, width_px=64, num_frames=8), model) == []
    (problem,) = geometry_problems(VideoConfig(None, height_px=96 - stride // 2, width_px=64, num_frames=8), model)
    assert f"must be a multiple of {stride}" in problem


def test_the_files_config_is_the_catalogues() -> None:
    run = compose(["model=open_sora_v2_dc_ae"]).points[0].run
    assert (run.model.mmdit, run.model.vae) == (OPEN_SORA_2_DC_AE.mmdit, OPEN_SORA_2_DC_AE.vae)
    assert (run.video.num_frames, run.video.resolution) == (128, "768px")
    assert compose(["model=open_sora_v2", "video=768px"]).points[0].run.video.num_frames == 129


@pytest.mark.parametrize(("latents", "frames"), [(1, 1), (4, 16), (5, 20), (7, 25), (8, 32), (32, 128)])
def test_tiles_in_time(latents: int, frames: int) -> None:
    """A last tile of one latent gives one frame, as in the reference; 32 latents in tiles of 8 never end so."""
    cfg = OPEN_SORA_2_DC_AE.vae if latents in (8, 32) else TEMPORAL
    grid = decode_grid(cfg, (latents, 2, 2))
    assert grid.out_shape == (frames, 64, 64)
    if frames % 4 == 0:
        assert encode_grid(cfg, (frames, 64, 64)).out_shape == (latents, 2, 2)
        size = VideoSize(64, 64, frames, None, cfg.tile_frames, lead=0)
        assert size.tiles == len(encode_grid(cfg, (frames, 64, 64)).tiles)


def test_a_norm_in_parts_is_the_same_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, x = Rms(8).bfloat16(), torch.randn(1, 8, 5, 6, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = norm(x)
    monkeypatch.setattr("opensora_launch.model.video_dc_ae._NORM_NUMBERS", 700)
    torch.testing.assert_close(norm(x), whole)


@pytest.mark.parametrize(
    ("stages", "latent", "problem"),
    [
        (DcAeConfig(widths=[8, 8]), 8, "model.vae.dc_ae.widths=[8, 8] must have 3 or more entries of at least 1"),
        (
            DcAeConfig(decoder_depths=[0] * 6),
            8,
            "model.vae.dc_ae.decoder_depths=[0, 0, 0, 0, 0, 0] must have 6 entries",
        ),
        (
            DcAeConfig(widths=[8, 16, 32, 32, 32]),
            8,
            "model.vae.dc_ae.encoder_depths=[2, 2, 2, 3, 3, 3] must have 5 entries of at least 1, as widths has",
        ),
        (DcAeConfig(widths=[8, 16, 16, 32, 40, 32]), 8, "[40] are not multiples of 32, the size of a head"),
        (DcAeConfig(widths=[8, 16, 16, 32, 32, 32]), 7, "the last is not a multiple of model.vae.latent_channels=7"),
        (DcAeConfig(widths=[8, 64, 16, 32, 32, 32]), 8, "[64] do not divide 4 times the width before them"),
    ],
)
def test_impossible_stages(stages: DcAeConfig, latent: int, problem: str) -> None:
    vae = VaeConfig(VaeKind.dc_ae, stages, latent_channels=latent, tile_frames=32)
    found = config_problems(ModelConfig(mmdit=MmditConfig(in_channels=latent, patch_size=1), vae=vae))
    assert any(problem in line for line in found), found


TINY = ("model=tiny_dc_ae", "sampling.num_steps=2", "video.num_frames=8", "--prompt", "a")


@pytest.mark.slow
def test_runs_from_an_image_on_one_rank_and_two(tmp_path: Path) -> None:
    ref = tmp_path / "ref.png"
    save_png(ref, Image.fromarray(np.full((64, 96, 3), 200, np.uint8)))
    shown = dict[int, Tensor]()
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        code, _, err = run_command(folder, "generate", *TINY, f"topology=cpu{ranks}", "--ref", str(ref))
        assert code == 0, err
        (video,) = folder.glob("runs/*/samples/0000_0.mp4")
        assert json.loads(video.with_suffix(".json").read_text())["cond_type"] == "i2v_head"
        shown[ranks] = torch.from_numpy(frames_of(video)).float()
    assert shown[1].shape == (8, 64, 96, 3)
    assert (shown[1] - shown[2]).abs().mean() < 2


def test_videos_as_references_are_refused(tmp_path: Path) -> None:
    code, _, err = run_command(
        tmp_path, "generate", *TINY, "topology=cpu1", "sampling.cond_type=v2v_head", "--ref", "x.mp4"
    )
    assert code == 2
    assert "cond_type=v2v_head is not possible with the Video DC-AE: use i2v_head, or model=open_sora_v2" in err
    assert "Traceback" not in err
