"""The VAE: decoding tile by tile, encoding, and its convolutions in both layouts of memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from _bench import interleaved, ratios, spread
from torch import Tensor

from _gpu.notes import Notes
from _gpu.setting import LARGE, Setting
from _gpu.transformer import finite
from opensora_launch.model.vae import Autoencoder, compute_tile, decode_regions, empty_vae, encode_pixels, load_vae
from opensora_launch.model.weights import random_tensors
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.memory import finished_bytes, tile_bytes
from opensora_launch.plan.networks import VAES
from opensora_launch.plan.video_size import VideoSize
from opensora_launch.schema.tiles import Tile, decode_grid

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
COMPARED_FRAMES = 5  # latent frames of the tile in both layouts: the wrong one may take 20 times as long
REHEARSED_FRAMES = 1  # the same for a CPU
ROUNDS = 2


def vae(setting: Setting, notes: Notes) -> None:
    """Load the VAE, when a point needs it, and time it."""

    @cache
    def loaded() -> Autoencoder:
        tensors = random_tensors(empty_vae(setting.model.vae), seed=0, dtype=setting.dtype, device=setting.device)
        return load_vae(setting.model.vae, tensors)

    notes.point("decode", lambda: _decode(setting, loaded()))
    notes.point("encode", lambda: _encode(setting, loaded()))
    notes.point("layouts", lambda: _layouts(setting, loaded()))


def _latents(setting: Setting) -> Tensor:
    shape, cfg = setting.geometry(LARGE), setting.model.vae
    sizes = (shape.latent_frames, shape.latent_height, shape.latent_width)
    return setting.random(1, cfg.latent_channels, *sizes, dtype=torch.float32)


def _decode(setting: Setting, network: Autoencoder) -> dict[str, Any]:
    """Decode a video as the worker does, and note the seconds of each tile."""
    model, shape, latents = setting.model, setting.geometry(LARGE), _latents(setting)
    tiles = list[dict[str, Any]]()

    def one_by_one(asked: Sequence[Tile], compute: Callable[[Tile], Tensor]) -> Iterator[Tensor]:
        for tile in asked:
            setting.wait()
            start = time.perf_counter()
            made = compute(tile)
            setting.wait()
            tiles.append({"out_shape": tile.out_shape, "s": time.perf_counter() - start})
            yield made

    def decode() -> bool:
        _, regions = decode_regions(network, model.vae, latents, one_by_one)
        assert regions is not None
        checked = [finite(region.values) for region in regions]  # all of them, also after one that is not
        return all(checked)

    whole, seconds, peak = setting.measured(decode)
    size = VideoSize(shape.width_px, shape.height_px, shape.num_frames, model.vae.tile_px)
    largest = max(tile["s"] for tile in tiles)
    return {
        "s": seconds,
        "tiles": tiles,
        **peak,
        "predicted_bytes": tile_bytes(size, setting.dtype.itemsize)
        + finished_bytes(size, Layout(), setting.dtype.itemsize),
        "finite": whole,
        "tile_pixels": size.tile_pixels,
        "largest_tile_s": largest,
        "planned_flops_per_s": VAES["hunyuan"].equal_flops * size.tile_pixels / largest,
    }


def _encode(setting: Setting, network: Autoencoder) -> dict[str, Any]:
    """Encode a video of random pixels, which wait in host memory."""
    shape = setting.geometry(LARGE)
    size = (1, 3, shape.num_frames, shape.height_px, shape.width_px)
    pixels = setting.random(*size, dtype=torch.float32, device=torch.device("cpu")).clamp_(-1, 1)
    made, seconds, peak = setting.measured(lambda: encode_pixels(network, setting.model.vae, pixels))
    assert made is not None
    return {"s": seconds, "frames": shape.num_frames, **peak, "finite": finite(made)}


def _layouts(setting: Setting, network: Autoencoder) -> dict[str, Any]:
    """Decode a tile with weights and latents in both layouts. (torch 2.9's bf16 Conv3d: pytorch#166122, #166643.)"""
    latents = _latents(setting)[:, :, : REHEARSED_FRAMES if setting.tiny else COMPARED_FRAMES].to(setting.dtype)
    grid = decode_grid(setting.model.vae, (latents.shape[2], latents.shape[3], latents.shape[4]))
    runs, peaks, values = dict[str, Callable[[], float]](), dict[str, Any](), dict[str, Tensor]()
    for name, layout in FORMATS.items():
        run = partial(_tile, network, latents.contiguous(memory_format=layout), grid.tiles[0], layout)
        setting.free()
        values[name], _, peaks[name] = setting.measured(run)
        runs[name] = partial(setting.timed, run)
    seconds = interleaved(runs, ROUNDS)
    contiguous, last = (values[name].float() for name in FORMATS)
    return {
        "latent_frames": latents.shape[2],
        **{name: {"s": spread(seconds[name]), **peaks[name]} for name in FORMATS},
        "contiguous_over_channels_last": ratios(seconds["contiguous"], seconds["channels last"]),
        "max_abs_difference": float((contiguous - last).abs().max()),
        "largest": float(contiguous.abs().max()),
    }


@torch.no_grad()
def _tile(network: Autoencoder, latents: Tensor, tile: Tile, layout: torch.memory_format) -> Tensor:
    """Decode one tile. Weights that have the layout already are not copied."""
    network.to(memory_format=layout)  # type: ignore[call-overload]
    return compute_tile(network.decode, latents, tile)
