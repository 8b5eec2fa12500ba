"""Place the tiles of the VAE. This is arithmetic, without torch.

The VAE runs on overlapping tiles, which are then blended. Tiles do not depend on each other, so they can be computed
anywhere; only the blending has an order (Open-Sora, autoencoder_kl_causal_3d.py: spatial tiles inside temporal ones).
Bounds are [start, stop) in what is cut: latents to decode, pixels and frames to encode. Where the first frame has a
latent of its own (`lead` 1), tiles overlap by one more frame in time.
"""

import math
from dataclasses import dataclass, replace

from opensora_launch.schema.autoencoder import VaeConfig, VaeKind
from opensora_launch.schema.even_shares import share_slices

Bounds = tuple[int, int]
VideoShape = tuple[int, int, int]  # frames, height, width
Sizes = tuple[int | None, int | None]  # of a tile, in time and in space; None: no cut there

# What layers compute at once is at least so many pixels of the output, and a small part of the whole video: small parts
# can be dealt evenly over ranks, and large ones keep a GPU busy.
PART_PIXELS, PARTS = 2**16, 80
FRAMES_PER_LATENT = 4


@dataclass(frozen=True)
class Tile:
    """One tile: the part that is cut out, and the shape of its output.

    Tiles after the first in time may be computed with one more frame, which is dropped.
    """

    index: tuple[int, int, int]  # in time, from the top, from the left
    time: Bounds
    y: Bounds
    x: Bounds
    out_shape: VideoShape
    parts: tuple[Bounds, ...] = ()  # of its latents, computed one after another; none: all at once


@dataclass(frozen=True)
class TileGrid:
    """All tiles in the order in which they are blended: over time, then downwards, then to the right.

    Each output keeps `keep` frames and lines (the first tile in time keeps `lead` more frames). Over its first `blend`
    frames and lines it is faded in from the tile before.
    """

    tiles: tuple[Tile, ...]
    out_shape: VideoShape
    keep: tuple[int, int]  # in time; in space, pixels or latents
    blend: tuple[int, int]
    lead: int


def tile_problems(cfg: VaeConfig) -> list[str]:
    """Return one line per size whose tiles or overlaps do not fall on whole latents."""
    problems, overlap = [], cfg.tile_overlap
    for name, size, ratio in (("pixels", cfg.tile_px, cfg.stride_px), ("frames", cfg.tile_frames, cfg.stride_frames)):
        if size is None:
            continue
        kept, kept_latents = size - int(size * overlap), int(size // ratio * (1 - overlap))
        if size % ratio or kept != kept_latents * ratio or not 0 < kept < size:
            rule = f"a tile and its overlap ({overlap} of it) must be whole latents ({ratio} each), and not 0"
            problems.append(f"a VAE tile of {size} {name} cannot be used: {rule}")
    return problems


def decode_grid(cfg: VaeConfig, latent_shape: VideoShape) -> TileGrid:
    """Cut latents into tiles whose outputs are pixels. The parts of a tile do not depend on who computes them."""
    grid = _grid(latent_shape, _latents_of_tile(cfg), (cfg.tile_frames, cfg.tile_px), cfg, up=True)
    if cfg.kind is not VaeKind.causal:
        return grid
    most = sum(map(tile_cost, grid.tiles)) / PARTS
    return replace(grid, tiles=tuple(replace(tile, parts=_parts(tile, most, cfg.stride_frames)) for tile in grid.tiles))


def _parts(tile: Tile, most: float, stride: int) -> tuple[Bounds, ...]:
    """Divide the latents of a tile into parts of at most so many pixels, unless they become too small or single."""
    latents, (_, height, width) = _length(tile.time), tile.out_shape
    of_latent = height * width * stride
    each = max(1, math.ceil(PART_PIXELS / of_latent), int(most / of_latent))
    count = latents // each
    return tuple((part.start, part.stop) for part in share_slices(latents, count)) if count > 1 else ()


def encode_grid(cfg: VaeConfig, pixel_shape: VideoShape) -> TileGrid:
    """Cut pixels into tiles whose outputs are latents, or their moments. Height and width are whole latents."""
    assert pixel_shape[1] % cfg.stride_px == 0 == pixel_shape[2] % cfg.stride_px, f"{pixel_shape} is not whole latents"
    return _grid(pixel_shape, (cfg.tile_frames, cfg.tile_px), _latents_of_tile(cfg), cfg, up=False)


def _latents_of_tile(cfg: VaeConfig) -> Sizes:
    frames, px = cfg.tile_frames, cfg.tile_px
    return None if frames is None else frames // cfg.stride_frames, None if px is None else px // cfg.stride_px


def _grid(shape: VideoShape, sizes: Sizes, outs: Sizes, cfg: VaeConfig, *, up: bool) -> TileGrid:
    """Cut `shape` into tiles of `sizes`, whose outputs have the sizes `outs`.

    A video is cut in space if its height or its width is larger than a tile, in time if it is longer. A last tile in
    time that gives no frame of its own is left out.
    """
    overlap, lead = cfg.tile_overlap, int(cfg.is_causal)

    def scaled(length: int, ratio: int) -> int:
        return length * ratio if up else length // ratio

    def frames_of(bounds: Bounds) -> int:
        """Frames or latents that a tile gives. A single frame is a single latent, whatever the VAE."""
        length = _length(bounds)
        if lead:
            return scaled(length - 1, cfg.stride_frames) + (bounds[0] == 0)
        return 1 if length == 1 else scaled(length, cfg.stride_frames)

    (size_t, size), (out_t, out) = sizes, outs
    stride_t, stride = (0 if s is None else int(s * (1 - overlap)) for s in sizes)
    in_time, in_space = size_t is not None and shape[0] > size_t, size is not None and max(shape[1:]) > size
    cut_in_time = _bounds(shape[0], size_t if in_time else None, stride_t, lead)
    times = [(bounds, frames) for bounds in cut_in_time if (frames := frames_of(bounds)) > 0]
    ys, xs = (
        [(s, scaled(_length(s), cfg.stride_px)) for s in _bounds(n, size if in_space else None, stride)]
        for n in shape[1:]
    )
    cut = tuple(
        Tile((t, i, j), time, y, x, (frames, height, width))
        for t, (time, frames) in enumerate(times)
        for i, (y, height) in enumerate(ys)
        for j, (x, width) in enumerate(xs)
    )
    keep_t, keep = scaled(stride_t, cfg.stride_frames), scaled(stride, cfg.stride_px)
    whole = (_blended_length(times, keep_t, lead), _blended_length(ys, keep), _blended_length(xs, keep))
    blend = int((out_t or 0) * overlap), int((out or 0) * overlap)
    return TileGrid(cut, whole, (keep_t, keep), blend, lead)


def _bounds(whole: int, size: int | None, stride: int, more: int = 0) -> list[Bounds]:
    """Return the bounds of tiles of `size` and `more`, one per stride; the whole one if there is no size."""
    if size is None:
        return [(0, whole)]
    return [(start, min(start + size + more, whole)) for start in range(0, whole, stride)]


def _length(bounds: Bounds) -> int:
    return bounds[1] - bounds[0]


def _blended_length(parts: list[tuple[Bounds, int]], keep: int, more: int = 0) -> int:
    """Return the length of a blended axis: `keep` of every part (and `more` of the first), and the whole last one."""
    return parts[-1][1] if len(parts) == 1 else (len(parts) - 1) * keep + more + parts[-1][1]


def tile_cost(tile: Tile) -> int:
    """Return the work of a tile in numbers of its output, in which the VAE's convolutions are linear."""
    frames, height, width = tile.out_shape
    return (frames + (tile.time[0] > 0)) * height * width


def part_frames(tile: Tile) -> tuple[int, ...]:
    """Return the frames that each part is computed to. Only the causal VAE has parts: its first latent is one frame."""
    return tuple(FRAMES_PER_LATENT * (stop - max(first, 1)) + (first == 0) for first, stop in tile.parts)
