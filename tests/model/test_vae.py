"""The VAE against the reference's tensors, untiled and in every tiling, and the tiles themselves."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opensora_launch.errors import UserError
from opensora_launch.model import causal_conv
from opensora_launch.model.causal_conv import CausalConv3d
from opensora_launch.model.causal_vae import CausalVae, FrameAttention, Upsample
from opensora_launch.model.vae import (
    assemble,
    blend,
    decode_latents,
    decode_regions,
    encode_pixels,
    load_vae,
    posterior_mean,
    posterior_sample,
)
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.tiles import Tile, decode_grid, encode_grid, tile_cost, tile_problems

CASE = Path(__file__).parents[1] / "reference" / "vae_tiny.json"
INFO = json.loads(CASE.read_text())
TENSORS = load_file(CASE.with_suffix(".safetensors"))
SIZES = INFO["vae"]["tiles"]
CFG = VaeConfig(
    latent_channels=4, norm_num_groups=4, block_out_channels=INFO["config"]["block_out_channels"], tile_px=None
)
SPATIAL = replace(CFG, tile_px=SIZES["sample_px"], tile_overlap=SIZES["overlap"])
TEMPORAL = replace(CFG, tile_frames=SIZES["sample_frames"], tile_overlap=SIZES["overlap"])
BOTH = replace(SPATIAL, tile_frames=SIZES["sample_frames"])
TILINGS = {"untiled": CFG, "spatial": SPATIAL, "temporal": TEMPORAL, "both": BOTH, "image_T1": CFG}


@pytest.fixture(scope="module")
def vae() -> CausalVae:
    loaded = load_vae(CFG, {k.removeprefix("weight."): v for k, v in TENSORS.items() if k.startswith("weight.")})
    assert isinstance(loaded, CausalVae)
    return loaded


def check(name: str, got: Tensor | None) -> None:
    assert got is not None
    torch.testing.assert_close(got, TENSORS[name], **INFO["compare"][name])


@pytest.mark.parametrize("variant", TILINGS)
def test_decode_equals_the_reference(vae: CausalVae, variant: str) -> None:
    latent = TENSORS["latent"][:, :, :1] if variant == "image_T1" else TENSORS["latent"]
    check(f"decode.{variant}", decode_latents(vae, TILINGS[variant], latent))


def test_a_shift_is_taken_back_before_decoding(vae: CausalVae) -> None:
    latent, shifted = TENSORS["latent"][:, :, :1], replace(CFG, shift_factor=0.3)
    want = decode_latents(vae, CFG, latent)
    got = decode_latents(vae, shifted, latent - CFG.scale_factor * 0.3)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", TILINGS)
def test_encode_equals_the_reference(vae: CausalVae, variant: str) -> None:
    pixels = TENSORS["pixels"][:, :, :1] if variant == "image_T1" else TENSORS["pixels"]
    moments = encode_pixels(vae, TILINGS[variant], pixels)
    assert moments is not None
    if variant != "image_T1":
        check(f"encode.{variant}.moments", moments)
    check(f"encode.{variant}.latent", posterior_mean(CFG, moments))


def test_every_tensor_of_the_case_is_compared() -> None:
    names = {f"decode.{v}" for v in TILINGS} | {f"encode.{v}.latent" for v in TILINGS}
    names |= {f"encode.{v}.moments" for v in TILINGS if v != "image_T1"}
    assert set(INFO["compare"]) == names


def test_tiles_may_be_computed_in_any_order_and_elsewhere(vae: CausalVae) -> None:
    def backwards(tiles: Sequence[Tile], compute: Callable[[Tile], Tensor]) -> Iterator[Tensor]:
        done = {tile: compute(tile) for tile in reversed(tiles)}
        return (done[tile] for tile in tiles)

    whole = decode_latents(vae, BOTH, TENSORS["latent"])
    again = decode_latents(vae, BOTH, TENSORS["latent"], backwards)
    assert whole is not None
    assert again is not None
    assert torch.equal(whole, again)
    assert decode_latents(vae, BOTH, TENSORS["latent"], lambda tiles, compute: None) is None


def test_one_output_is_held_at_a_time(vae: CausalVae) -> None:
    """By default a tile is computed only when the one before is blended."""
    events: list[str] = []

    def watched(tiles: Sequence[Tile], compute: Callable[[Tile], Tensor]) -> Iterator[Tensor]:
        for i, tile in enumerate(tiles):
            events.append(f"compute {i}")
            yield compute(tile)
            events.append(f"blended {i}")

    decode_latents(vae, SPATIAL, TENSORS["latent"][:, :, :2], watched)
    assert events[:3] == ["compute 0", "blended 0", "compute 1"]


def test_regions_come_as_they_are_finished_and_cover_the_whole_once(vae: CausalVae) -> None:
    """Of tiles in time and space: frames of a later time come after all of the time before, and none twice."""
    latent = TENSORS["latent"]
    whole = decode_latents(vae, BOTH, latent)
    grid, regions = decode_regions(vae, BOTH, latent)
    assert whole is not None
    assert regions is not None
    covered, starts = torch.zeros(grid.out_shape, dtype=torch.int64), list[int]()
    for region in regions:
        place = (region.frames, region.y, region.x)
        covered[place] += 1
        starts.append(region.frames.start)
        assert torch.equal(region.values, whole[(slice(None), slice(None), *place)])
    assert int(covered.min()) == int(covered.max()) == 1
    assert starts == sorted(starts)
    assert len(set(starts)) > 1


def test_the_released_vae_has_the_published_size() -> None:
    with torch.device("meta"):
        state = CausalVae(VaeConfig()).state_dict()
    assert (len(state), sum(t.numel() for t in state.values())) == (248, 246_478_803)
    assert state["decoder.up_blocks.2.upsamplers.0.conv.conv.weight"].shape == (256, 256, 3, 3, 3)


def test_weights_that_do_not_match_are_listed() -> None:
    with pytest.raises(UserError, match="the VAE's weights do not match") as caught:
        load_vae(CFG, {"post_quant_conv.weight": torch.zeros(3, 3, 1, 1, 1), "other": torch.zeros(1)})
    assert "1 unexpected: other" in str(caught.value)
    assert "post_quant_conv.weight has shape (3, 3, 1, 1, 1), but the config requires (4, 4, 1, 1, 1)" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("latent", "count", "rows", "columns"),
    [
        ((33, 24, 42), 2, 1, 2),  # 256px 16:9
        ((33, 72, 128), 18, 3, 6),  # 768px 16:9
        ((33, 96, 96), 16, 4, 4),  # 768px 1:1
        ((33, 62, 148), 21, 3, 7),  # 768px 2.39:1
        ((33, 32, 32), 1, 1, 1),  # not larger than a tile
    ],
)
def test_tiles_of_real_videos(latent: tuple[int, int, int], count: int, rows: int, columns: int) -> None:
    grid = decode_grid(VaeConfig(), latent)
    assert len(grid.tiles) == count
    assert grid.tiles[-1].index == (0, rows - 1, columns - 1)
    assert grid.out_shape == (129, latent[1] * 8, latent[2] * 8)
    assert encode_grid(VaeConfig(), grid.out_shape).out_shape == latent


def test_the_tiles_of_768px_cost_160_percent_of_the_whole() -> None:
    grid = decode_grid(VaeConfig(), (33, 72, 128))
    assert sum(map(tile_cost, grid.tiles)) / (129 * 576 * 1024) == pytest.approx(1.60, abs=0.005)


@pytest.mark.parametrize("frames", range(1, 60))
def test_every_length_and_size_comes_out_whole(frames: int) -> None:
    shape = (frames, 1 + frames % 13, 1 + frames % 11)
    pixels = ((frames - 1) * 4 + 1, shape[1] * 8, shape[2] * 8)
    assert decode_grid(BOTH, shape).out_shape == pixels
    assert encode_grid(BOTH, pixels).out_shape == shape


def test_tile_sizes_that_do_not_fall_on_latents_are_refused() -> None:
    assert tile_problems(VaeConfig()) == []
    assert tile_problems(BOTH) == []
    assert "tile of 200 pixels" in tile_problems(VaeConfig(tile_px=200))[0]
    assert "tile of 256 pixels" in tile_problems(VaeConfig(tile_overlap=0.3))[0]
    assert "tile of 10 frames" in tile_problems(VaeConfig(tile_px=None, tile_frames=10))[0]


@pytest.mark.parametrize(("kernel", "stride"), [(3, (1, 1, 1)), (3, (2, 2, 2)), (3, (1, 2, 2)), (1, (1, 1, 1))])
@pytest.mark.parametrize("frames", [1, 2, 9, 10])
def test_a_convolution_in_parts_of_the_frames_is_the_same(
    kernel: int, stride: tuple[int, int, int], frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    conv = CausalConv3d(2, 3, kernel, stride).double()
    x = torch.randn(1, 2, frames, 5, 6, dtype=torch.float64)
    whole = conv(x)
    for at_once in (1, 2, 3):
        monkeypatch.setattr(causal_conv, "VAE_CHUNK_NUMBERS", 3 * 7 * 8 * (at_once * stride[0] + 2))
        torch.testing.assert_close(conv(x), whole, atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layers_in_parts_of_the_frames_are_the_same(
    vae: CausalVae, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms, upsampling, convolutions and shortcuts cut in time, convolutions that write over their input."""
    tensors = {k: v.to(dtype) for k, v in vae.state_dict().items()}
    whole = load_vae(CFG, tensors)
    latent, pixels = TENSORS["latent"][..., :4, :5].to(dtype), TENSORS["pixels"][..., :40, :32].to(dtype)
    want = [decode_latents(whole, CFG, latent), encode_pixels(whole, CFG, pixels)]
    for numbers in (1, 3000, 30000):
        monkeypatch.setattr(causal_conv, "VAE_CHUNK_NUMBERS", numbers)
        got = [decode_latents(whole, CFG, latent), encode_pixels(whole, CFG, pixels)]
        bound = 1e-12 if dtype == torch.float64 else 3e-5
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, atol=bound, rtol=bound)


def test_attention_sees_its_own_frame_and_those_before() -> None:
    torch.manual_seed(0)
    layer = FrameAttention(8, 2).double()
    x = torch.randn(2, 8, 4, 3, 2, dtype=torch.float64)
    tokens = layer.group_norm(x).flatten(2).mT
    frame = torch.arange(4).repeat_interleave(6)
    scores = layer.to_q(tokens) @ layer.to_k(tokens).mT / 8**0.5
    scores = scores.masked_fill(frame[:, None] < frame, float("-inf"))
    want = layer.to_out[0](scores.softmax(-1) @ layer.to_v(tokens)).mT.reshape(x.shape) + x
    torch.testing.assert_close(layer(x), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("factor", [(1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("frames", [1, 4])
def test_upsampling_repeats_all_frames_but_the_first(factor: tuple[int, int, int], frames: int) -> None:
    torch.manual_seed(0)
    layer, x = Upsample(2, factor), torch.randn(1, 2, frames, 3, 5)
    first = torch.nn.functional.interpolate(x[:, :, 0], scale_factor=2, mode="nearest")[:, :, None]
    parts = [first]
    if frames > 1:
        parts.append(torch.nn.functional.interpolate(x[:, :, 1:], scale_factor=factor, mode="nearest"))
    torch.testing.assert_close(layer(x), layer.conv(torch.cat(parts, dim=2)), atol=0, rtol=0)


def test_the_posterior_is_drawn_by_the_given_generator() -> None:
    cfg = VaeConfig(latent_channels=4, scale_factor=0.5, shift_factor=0.25)
    moments = torch.cat([torch.full((1, 4, 1, 2, 2), 3.0), torch.full((1, 4, 1, 2, 2), 2 * 0.6931472)], dim=1)
    draw = posterior_sample(cfg, moments, torch.Generator().manual_seed(7))
    noise = torch.randn(1, 4, 1, 2, 2, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(draw, 0.5 * (3.0 + 2.0 * noise - 0.25))
    assert torch.equal(posterior_mean(cfg, moments), torch.full((1, 4, 1, 2, 2), 1.375))
    assert posterior_sample(cfg, moments.bfloat16(), torch.Generator()).dtype == torch.float32


def test_bf16_blends_without_losing_the_weights() -> None:
    """Weights y/n of a blend are not rounded to bf16; the result differs from fp32 by rounding of the pixels alone."""
    grid = decode_grid(VaeConfig(), (1, 8, 40))
    whole = torch.linspace(-1, 1, 320).expand(1, 3, 1, 64, 320)
    cut = [whole[..., tile.x[0] * 8 : tile.x[1] * 8].clone() for tile in grid.tiles]
    torch.testing.assert_close(assemble(grid, blend(grid, cut)), whole, atol=1e-6, rtol=0)
    half = assemble(grid, blend(grid, [part.bfloat16() for part in cut]))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, atol=2**-8, rtol=0)
