"""Videos to latents and back with the causal VAE, tile by tile.

    B rows   C latent channels   M = 2 C moments   T H W frames, height, width of latents or of pixels

Latents are in model space: scale_factor * (z - shift_factor), as the diffusion transformer sees them.

Who computes which tile is an argument. `run_tiles(tiles, compute)` returns the outputs in the order of `tiles`,
lazily if it likes, or None where they are not wanted (a rank that sent its own to the one that blends):

    def run_tiles(tiles, compute):             # the ranks of a video, root blends
        mine = {i: compute(tiles[i]) for i in my_share}
        return in_order(gathered) if root else None

A tile's output is B, channels, *tile.out_shape, in the VAE's dtype; it is blended in place. `tile_cost` balances.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.load import fill
from opensora_launch.model.tiles import Tile, TileGrid, Tiles, decode_grid, encode_grid
from opensora_launch.schema.config import VaeConfig

RunTiles = Callable[[Sequence[Tile], Callable[[Tile], Tensor]], Iterable[Tensor] | None]


def load_vae(cfg: VaeConfig, tensors: Mapping[str, Tensor]) -> CausalVae:
    """The VAE of `cfg` with exactly the weights in `tensors` (public names), which it takes as they are."""
    with torch.device("meta"):
        vae = CausalVae(cfg)
    fill(vae, tensors, "the VAE's weights")
    return vae


def one_after_another(tiles: Sequence[Tile], compute: Callable[[Tile], Tensor]) -> Iterator[Tensor]:
    """All tiles here, each computed when the blending asks for it, so that one output is held at a time."""
    return (compute(tile) for tile in tiles)


@dataclass(frozen=True)
class Region:
    """A finished part of what comes out of the VAE: B, channels, frames, rows, columns, and where it belongs."""

    values: Tensor
    frames: slice
    rows: slice
    columns: slice


@torch.no_grad()
def decode_regions(
    vae: CausalVae,
    cfg: VaeConfig,
    latent: Float[Tensor, "B C T H W"],
    tiles: Tiles,
    run_tiles: RunTiles = one_after_another,
) -> tuple[TileGrid, Iterator[Region] | None]:
    """Pixels B 3 T' H' W' in [-1, 1], nearly, region by region; None where `run_tiles` gives None."""
    z = (latent / cfg.scale_factor + cfg.shift_factor).to(vae.post_quant_conv.weight)
    grid = decode_grid(tiles, tuple3(z))
    outputs = run_tiles(grid.tiles, lambda tile: compute_tile(vae.decode, z, tile))
    return grid, None if outputs is None else blend(grid, outputs)


def decode(
    vae: CausalVae,
    cfg: VaeConfig,
    latent: Float[Tensor, "B C T H W"],
    tiles: Tiles,
    run_tiles: RunTiles = one_after_another,
) -> Tensor | None:
    """Pixels B 3 T' H' W' in [-1, 1], nearly, as one tensor; None where `run_tiles` gives None."""
    grid, regions = decode_regions(vae, cfg, latent, tiles, run_tiles)
    return None if regions is None else assemble(grid, regions)


@torch.no_grad()
def encode(
    vae: CausalVae, pixels: Float[Tensor, "B 3 T H W"], tiles: Tiles, run_tiles: RunTiles = one_after_another
) -> Tensor | None:
    """Moments B M t h w of the latents, unscaled: means, then log variances. H and W are multiples of 8.

    The pixels may be elsewhere: a tile of them at a time comes to the VAE's device.
    """
    like, grid = vae.quant_conv.weight, encode_grid(tiles, tuple3(pixels))
    outputs = run_tiles(grid.tiles, lambda tile: compute_tile(lambda cut: vae.encode(cut.to(like)), pixels, tile))
    return None if outputs is None else assemble(grid, blend(grid, outputs))


def posterior_mean(cfg: VaeConfig, moments: Float[Tensor, "B M T H W"]) -> Float[Tensor, "B C T H W"]:
    """The latent's mean, in model space, in fp32 or wider."""
    return cfg.scale_factor * (wide(moments).chunk(2, dim=1)[0] - cfg.shift_factor)


def posterior_sample(
    cfg: VaeConfig, moments: Float[Tensor, "B M T H W"], generator: torch.Generator
) -> Float[Tensor, "B C T H W"]:
    """A draw of the latent, in model space, in fp32 or wider. `generator` is a CPU's: the same draw everywhere."""
    mean, log_variance = wide(moments).chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32).to(mean)
    std = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
    return cfg.scale_factor * (mean + std * noise - cfg.shift_factor)


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def compute_tile(run: Callable[[Tensor], Tensor], whole: Float[Tensor, "B C T H W"], tile: Tile) -> Tensor:
    """B, channels, *tile.out_shape: the tile cut out of `whole` and run through the encoder or decoder."""
    cut = whole[:, :, slice(*tile.time), slice(*tile.rows), slice(*tile.columns)]
    out = run(cut)
    if tile.time[0] > 0:
        out = out[:, :, 1:]
    assert tuple3(out) == tile.out_shape, f"tile {tile} came out as {tuple3(out)}"
    return out


def assemble(grid: TileGrid, regions: Iterable[Region]) -> Tensor:
    """All regions as one tensor."""
    whole = None
    for region in regions:
        shape = (*region.values.shape[:2], *grid.out_shape)
        if region.values.shape == shape:
            return region.values
        whole = region.values.new_empty(shape) if whole is None else whole
        whole[:, :, region.frames, region.rows, region.columns] = region.values
    assert whole is not None, "a grid has a tile"
    return whole


@torch.no_grad()
def blend(grid: TileGrid, outputs: Iterable[Tensor]) -> Iterator[Region]:
    """Regions of the whole as they are finished, from the outputs of `grid.tiles` in their order.

    Tiles are blended in space, then with the ones before in time, of which the last frames are kept.
    """
    last = max(tile.index[0] for tile in grid.tiles)
    keep_t, keep = grid.keep
    tail = None
    for tile, values in zip(grid.tiles, blend_in_space(grid, outputs), strict=True):
        t, top, left = tile.index[0], tile.index[1] * keep, tile.index[2] * keep
        rows, columns = slice(top, top + values.shape[3]), slice(left, left + values.shape[4])
        if t > 0:
            assert tail is not None
            fade(tail[:, :, :, rows, columns], values, dim=2, blend=grid.blend[0])
        if t < last:
            end = values[:, :, -grid.blend[0] :]
            tail = end.new_empty(*end.shape[:3], *grid.out_shape[1:]) if tail is None else tail
            tail[:, :, :, rows, columns] = end
            values = values[:, :, : keep_t + (t == 0)]
        start = t * keep_t + (t > 0)
        yield Region(values, slice(start, start + values.shape[2]), rows, columns)


def blend_in_space(grid: TileGrid, outputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """What stays of each tile. It is faded in from the one above and then from the one to its left, as these are then.

    Of a finished tile only the strips are held that its neighbours need.
    """
    keep, blend = grid.keep[1], grid.blend[1]
    alone = all(tile.index[1:] == (0, 0) for tile in grid.tiles)
    left, above = None, dict[int, Tensor]()  # right strip of the tile before, bottom strips of the row before
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
    """Fade the start of `after` in from the end of `before`, in place: y/n of it at its y-th of n places."""
    count = min(before.shape[dim], after.shape[dim], blend)
    if count == 0:
        return
    view = [1] * after.ndim
    view[dim] = count
    share = torch.arange(count, dtype=torch.float64) / count
    new, old = (
        w.to(after.device, torch.promote_types(after.dtype, torch.float32)).view(view) for w in (share, 1 - share)
    )
    start = after.narrow(dim, 0, count)
    start.copy_(before.narrow(dim, before.shape[dim] - count, count) * old + start * new)


def tuple3(x: Tensor) -> tuple[int, int, int]:
    frames, height, width = x.shape[2:]
    return frames, height, width
