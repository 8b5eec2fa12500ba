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

import torch
from jaxtyping import Float
from torch import Tensor

from opensora_launch.config import VaeConfig
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.load import fill
from opensora_launch.model.tiles import Tile, TileGrid, Tiles, decode_grid, encode_grid

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


@torch.no_grad()
def decode(
    vae: CausalVae,
    cfg: VaeConfig,
    latent: Float[Tensor, "B C T H W"],
    tiles: Tiles,
    run_tiles: RunTiles = one_after_another,
) -> Tensor | None:
    """Pixels B 3 T' H' W' in [-1, 1], nearly; None where `run_tiles` gives None."""
    z = (latent / cfg.scale_factor + cfg.shift_factor).to(vae.post_quant_conv.weight)
    grid = decode_grid(tiles, tuple3(z))
    outputs = run_tiles(grid.tiles, lambda tile: compute_tile(vae.decode, z, tile))
    return None if outputs is None else blend_tiles(grid, outputs)


@torch.no_grad()
def encode(
    vae: CausalVae, pixels: Float[Tensor, "B 3 T H W"], tiles: Tiles, run_tiles: RunTiles = one_after_another
) -> Tensor | None:
    """Moments B M t h w of the latents, unscaled: means, then log variances. H and W are multiples of 8."""
    pixels = pixels.to(vae.quant_conv.weight)
    grid = encode_grid(tiles, tuple3(pixels))
    outputs = run_tiles(grid.tiles, lambda tile: compute_tile(vae.encode, pixels, tile))
    return None if outputs is None else blend_tiles(grid, outputs)


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


def blend_tiles(grid: TileGrid, outputs: Iterable[Tensor]) -> Tensor:
    """The whole, from the outputs of `grid.tiles` in their order, which may come as they are produced.

    A tile is faded in from the one above and then from the one to its left, both faded in themselves before.
    Of a finished tile only the strips stay that its neighbours need. Then the same in time.
    """
    rest = iter(outputs)
    times = max(tile.index[0] for tile in grid.tiles) + 1
    parts: list[Tensor] = []
    tail = None
    for t in range(times):
        part = blend_plane(grid, [tile for tile in grid.tiles if tile.index[0] == t], rest)
        if tail is not None:
            fade(tail, part, dim=2, blend=grid.blend[0])
        tail = part[:, :, -grid.blend[0] :]
        parts.append(part if t == times - 1 else part[:, :, : grid.keep[0] + (t == 0)])
    return torch.cat(parts, dim=2) if times > 1 else parts[0]


def blend_plane(grid: TileGrid, tiles: Sequence[Tile], rest: Iterator[Tensor]) -> Tensor:
    """Tiles of one time, blended in space."""
    keep, blend = grid.keep[1], grid.blend[1]
    if len(tiles) == 1:
        return next(rest)
    whole = None
    left, above = None, dict[int, Tensor]()  # right strip of the tile before, bottom strips of the row before
    for tile in tiles:
        out, (_, i, j) = next(rest), tile.index
        if whole is None:
            whole = out.new_empty(*out.shape[:3], *grid.out_shape[1:])
        if i > 0:
            fade(above[j], out, dim=3, blend=blend)
        if j > 0:
            assert left is not None
            fade(left, out, dim=4, blend=blend)
        left, above[j] = out[..., -blend:].clone(), out[..., -blend:, :].clone()
        place = whole[:, :, :, i * keep : (i + 1) * keep, j * keep : (j + 1) * keep]
        place.copy_(out[..., :keep, :keep])
    assert whole is not None
    return whole


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
