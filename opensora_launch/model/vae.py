"""Encode videos into latents and decode them with an autoencoder, tile by tile.

    B videos   C latent channels   T H W frames, height, width of latents or of pixels
    M channels of what the encoder gives: 2 C moments of the latents, or the C latents of the Video DC-AE

Latents are in model space: scale_factor * (z - shift_factor), as the diffusion transformer sees them.

Who computes which tile is an argument. `run_tiles(tiles, compute)` returns the outputs in the order of `tiles`,
lazily if it likes, or None where they are not wanted (on a rank that sent its own to the one that blends):

    def run_tiles(tiles, compute):             # on the ranks of a video, whose root blends
        mine = {i: compute(tiles[i]) for i in my_share}
        return in_order(gathered) if root else None

`compute(tile, share)` computes only the frames of a share. The output of a tile is B, channels, *tile.out_shape, in the
dtype of the VAE, and is blended in place. `schema/tile_shares.py` balances the work.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.frame_norms import EAGER_NORMS, Norms
from opensora_launch.model.frame_shares import FrameShare
from opensora_launch.model.image_vae import ImageVae, renamed_weights
from opensora_launch.model.load import fill
from opensora_launch.model.video_dc_ae import VideoDcAe
from opensora_launch.model.video_layout import layout_for
from opensora_launch.schema.autoencoder import VaeConfig, VaeKind
from opensora_launch.schema.tile_shares import share_shape
from opensora_launch.schema.tiles import Tile, TileGrid, decode_grid, encode_grid

Autoencoder = CausalVae | VideoDcAe | ImageVae
_CLASSES: Mapping[VaeKind, Callable[[VaeConfig], Autoencoder]] = {
    VaeKind.causal: CausalVae,
    VaeKind.dc_ae: VideoDcAe,
    VaeKind.image: ImageVae,
}
Compute = Callable[..., Tensor]  # a tile, and the share of its frames if that is not all -> its output
RunTiles = Callable[[Sequence[Tile], Compute], Iterable[Tensor] | None]


def empty_vae(cfg: VaeConfig) -> Autoencoder:
    """Build the autoencoder of `cfg` on the meta device."""
    with torch.device("meta"):
        return _CLASSES[cfg.kind](cfg)


def load_vae(cfg: VaeConfig, tensors: Mapping[str, Tensor]) -> Autoencoder:
    """Build the autoencoder of `cfg` with exactly the weights in `tensors`, keeping dtype and device.

    They have their public names or the module's. On CUDA they may change their layout in memory.
    """
    vae = empty_vae(cfg)
    if isinstance(vae, ImageVae):
        fill(vae, renamed_weights(vae, cfg, tensors), "the VAE's weights")
        return vae  # convolutions over images need no other layout
    fill(vae, tensors, "the VAE's weights")
    layout = layout_for(vae.like.device, vae.like.dtype)
    return vae.to(memory_format=layout)  # type: ignore[no-any-return, call-overload]


def one_after_another(tiles: Sequence[Tile], compute: Compute) -> Iterator[Tensor]:
    """Compute all tiles here, each when the blending asks for it, so that one output is held at a time."""
    return (compute(tile) for tile in tiles)


@dataclass(frozen=True)
class Region:
    """A finished part of the output: B, channels, frames, height, width, and the slices where it belongs."""

    values: Tensor
    frames: slice
    y: slice
    x: slice


@torch.no_grad()
def decode_regions(
    vae: Autoencoder,
    cfg: VaeConfig,
    latent: Float[Tensor, "B C T H W"],
    run_tiles: RunTiles = one_after_another,
    norms: Norms = EAGER_NORMS,
) -> tuple[TileGrid, Iterator[Region] | None]:
    """Decode latents to pixels B 3 T' H' W', nearly in [-1, 1], region by region; None where `run_tiles` gives None."""
    z = (latent / cfg.scale_factor + cfg.shift_factor).to(vae.like)
    grid = decode_grid(cfg, video_shape(z))
    decode = partial(vae.decode, norms=norms) if isinstance(vae, CausalVae) else vae.decode
    outputs = run_tiles(grid.tiles, lambda tile, share=None: compute_tile(decode, z, tile, share))
    return grid, None if outputs is None else blend(grid, outputs)


def decode_latents(
    vae: Autoencoder, cfg: VaeConfig, latent: Float[Tensor, "B C T H W"], run_tiles: RunTiles = one_after_another
) -> Tensor | None:
    """Decode latents into pixels B 3 T' H' W', nearly in [-1, 1], as one tensor; None where `run_tiles` gives None."""
    grid, regions = decode_regions(vae, cfg, latent, run_tiles)
    return None if regions is None else assemble(grid, regions)


@torch.no_grad()
def encode_pixels(
    vae: Autoencoder, cfg: VaeConfig, pixels: Float[Tensor, "B 3 T H W"], run_tiles: RunTiles = one_after_another
) -> Tensor | None:
    """Encode pixels into what the encoder gives, unscaled: B M t h w, whole latents in height and width.

    The pixels may be on another device: one tile of them at a time is copied to the device of the VAE.
    """
    like, grid = vae.like, encode_grid(cfg, video_shape(pixels))
    outputs = run_tiles(grid.tiles, lambda tile: compute_tile(lambda cut: vae.encode(cut.to(like)), pixels, tile))
    return None if outputs is None else assemble(grid, blend(grid, outputs))


def posterior_mean(cfg: VaeConfig, moments: Float[Tensor, "B M T H W"]) -> Float[Tensor, "B C T H W"]:
    """Return the mean of the latents, in model space, in fp32 or wider. `moments` of the DC-AE are the latents."""
    mean = _widened(moments) if cfg.kind is VaeKind.dc_ae else _widened(moments).chunk(2, dim=1)[0]
    return cfg.scale_factor * (mean - cfg.shift_factor)


def posterior_sample(
    cfg: VaeConfig, moments: Float[Tensor, "B M T H W"], generator: torch.Generator
) -> Float[Tensor, "B C T H W"]:
    """Draw the latents, in model space, in fp32 or wider. A CPU's `generator` gives the same draw on every device.

    The DC-AE's latents are not random.
    """
    if cfg.kind is VaeKind.dc_ae:
        return posterior_mean(cfg, moments)
    mean, log_variance = _widened(moments).chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32).to(mean)
    std = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
    return cfg.scale_factor * (mean + std * noise - cfg.shift_factor)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def compute_tile(
    run: Callable[..., Tensor], whole: Float[Tensor, "B C T H W"], tile: Tile, share: FrameShare | None = None
) -> Tensor:
    """Cut the tile out of `whole` and run it through the encoder or decoder: B, channels, *tile.out_shape.

    With a share, these are only its latents and its frames.
    """
    cut = whole[:, :, slice(*tile.time), slice(*tile.y), slice(*tile.x)]
    if share is None and tile.parts:
        share = FrameShare(tile.parts, ((0, len(tile.parts)),))
    out = run(cut) if share is None else run(cut[:, :, slice(*share.latents)], share)
    shape = tile.out_shape if share is None else share_shape(tile, share.ranks[share.index])
    out = out[:, :, out.shape[2] - shape[0] :]
    assert video_shape(out) == shape, f"tile {tile} came out as {video_shape(out)}"
    return out


def assemble(grid: TileGrid, regions: Iterable[Region]) -> Tensor:
    whole = None
    for region in regions:
        shape = (*region.values.shape[:2], *grid.out_shape)
        if region.values.shape == shape:
            return region.values
        whole = region.values.new_empty(shape) if whole is None else whole
        whole[:, :, region.frames, region.y, region.x] = region.values
    assert whole is not None, "a grid has a tile"
    return whole


@torch.no_grad()
def blend(grid: TileGrid, outputs: Iterable[Tensor]) -> Iterator[Region]:
    """Yield regions of the whole as they are finished, from the outputs of `grid.tiles` in their order.

    Tiles are blended in space, and then with the earlier ones in time, whose last frames are kept.
    """
    last = max(tile.index[0] for tile in grid.tiles)
    keep_t, keep = grid.keep
    tail = None
    for tile, values in zip(grid.tiles, blend_in_space(grid, outputs), strict=True):
        t, top, left = tile.index[0], tile.index[1] * keep, tile.index[2] * keep
        y, x = slice(top, top + values.shape[3]), slice(left, left + values.shape[4])
        if t > 0:
            assert tail is not None
            fade(tail[:, :, :, y, x], values, dim=2, blend=grid.blend[0])
        if t < last:
            end = values[:, :, -grid.blend[0] :]
            tail = end.new_empty(*end.shape[:3], *grid.out_shape[1:]) if tail is None else tail
            tail[:, :, :, y, x] = end
            values = values[:, :, : keep_t + (grid.lead if t == 0 else 0)]
        start = t * keep_t + (grid.lead if t > 0 else 0)
        yield Region(values, slice(start, start + values.shape[2]), y, x)


def blend_in_space(grid: TileGrid, outputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the kept part of each tile, faded in from the blended tile above and then from the one to its left.

    Only those strips of a finished tile are held that its neighbours need.
    """
    keep, blend = grid.keep[1], grid.blend[1]
    alone = all(tile.index[1:] == (0, 0) for tile in grid.tiles)
    left, above = None, dict[int, Tensor]()  # right strip of the tile to the left, bottom strips of the tiles above
    for tile, out in zip(grid.tiles, outputs, strict=True):
        if alone:
            yield out
            continue
        _, i, j = tile.index
        if i > 0:
            fade(above[j], out, dim=3, blend=blend)
        if j > 0:
            assert left is not None
            fade(left, out, dim=4, blend=blend)
        left, above[j] = out[..., -blend:].clone(), out[..., -blend:, :].clone()
        yield out[..., :keep, :keep]


def fade(before: Tensor, after: Tensor, *, dim: int, blend: int) -> None:
    """Fade the start of `after` in from the end of `before`, in place: at place i of n it keeps i/n of itself."""
    count = min(before.shape[dim], after.shape[dim], blend)
    if count == 0:
        return
    view = [1] * after.ndim
    view[dim] = count
    share = (torch.arange(count, dtype=torch.float64, device=after.device) / count).view(view)
    new, old = (weight.to(torch.promote_types(after.dtype, torch.float32)) for weight in (share, 1 - share))
    start = after.narrow(dim, 0, count)
    start.copy_(before.narrow(dim, before.shape[dim] - count, count) * old + start * new)


def video_shape(x: Tensor) -> tuple[int, int, int]:
    frames, height, width = x.shape[2:]
    return frames, height, width
