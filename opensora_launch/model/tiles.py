"""Where the VAE's tiles lie, as arithmetic: no torch.

The VAE is run on overlapping tiles, which are then blended. Tiles do not depend on each other, so they can be
computed anywhere; only the blending has an order (Open-Sora, autoencoder_kl_causal_3d.py: spatial tiles inside
temporal ones). Positions are [start, stop) in what is cut: latents to decode, pixels and frames to encode.
"""

from dataclasses import dataclass

from opensora_launch.schema.config import VaeConfig

SPACE, TIME = 8, 4  # pixels a latent, frames a latent (the first frame has a latent of its own)

Span = tuple[int, int]
Shape = tuple[int, int, int]
Sizes = tuple[int | None, int | None]  # in time, in space


@dataclass(frozen=True)
class Tiles:
    """Sizes of tiles: pixels and the same in latents, frames and the same in latents. None does not cut there.

    A video is cut in space if its height or its width is larger than a tile, in time if it is longer.
    """

    sample_px: int | None = None
    latent: int | None = None
    sample_frames: int | None = None
    latent_frames: int | None = None
    overlap: float = 0.25


UNTILED = Tiles()


@dataclass(frozen=True)
class Tile:
    """One tile: what is cut out, and the shape (frames, height, width) of what comes out of it.

    Tiles after the first in time are computed with one frame more, which is dropped.
    """

    index: tuple[int, int, int]  # time, row, column
    time: Span
    rows: Span
    columns: Span
    out_shape: Shape


@dataclass(frozen=True)
class TileGrid:
    """All tiles in the order in which they are blended: time, then rows, then columns.

    Of every output, `keep` frames, rows and columns stay (one frame more of the first tile in time); over the
    first `blend` ones it is faded in from the tile before.
    """

    tiles: tuple[Tile, ...]
    out_shape: Shape
    keep: tuple[int, int]  # frames, pixels or latents
    blend: tuple[int, int]


def tiles_of(cfg: VaeConfig) -> Tiles:
    """What Open-Sora 2.0 infers with: tiles in space, and none in time unless they are asked for."""
    px, frames = cfg.tile_px, cfg.tile_frames
    return Tiles(
        sample_px=px,
        latent=None if px is None else px // SPACE,
        sample_frames=frames,
        latent_frames=None if frames is None else frames // TIME,
        overlap=cfg.tile_overlap,
    )


def tile_problems(tiles: Tiles) -> list[str]:
    """Lines for sizes whose tiles or overlaps do not fall on whole latents."""
    problems = []
    for name, size, latent, ratio in (
        ("tile of {} pixels", tiles.sample_px, tiles.latent, SPACE),
        ("tile of {} frames", tiles.sample_frames, tiles.latent_frames, TIME),
    ):
        if size is None or latent is None:
            continue
        kept, kept_latents = size - int(size * tiles.overlap), int(latent * (1 - tiles.overlap))
        if size != latent * ratio or kept != kept_latents * ratio or not 0 < kept < size:
            rule = f"a tile and its overlap ({tiles.overlap} of it) must be whole latents ({ratio} each), and not 0"
            problems.append(f"a VAE {name.format(size)} cannot be used: {rule}")
    return problems


def decode_grid(tiles: Tiles, latent_shape: Shape) -> TileGrid:
    """Tiles of latents (frames, height, width), and of the pixels that come out."""
    sizes, outs = (tiles.latent_frames, tiles.latent), (tiles.sample_frames, tiles.sample_px)
    return grid(latent_shape, sizes, outs, tiles.overlap, up=True)


def encode_grid(tiles: Tiles, pixel_shape: Shape) -> TileGrid:
    """Tiles of pixels (frames, height, width), and of the moments that come out."""
    assert pixel_shape[1] % SPACE == 0 == pixel_shape[2] % SPACE, f"{pixel_shape} is not whole latents"
    sizes, outs = (tiles.sample_frames, tiles.sample_px), (tiles.latent_frames, tiles.latent)
    return grid(pixel_shape, sizes, outs, tiles.overlap, up=False)


def grid(shape: Shape, sizes: Sizes, outs: Sizes, overlap: float, *, up: bool) -> TileGrid:
    """`sizes` of tiles in what is cut and `outs` in what comes out, each in time and in space.

    A last tile in time that gives no frame of its own is left out.
    """

    def scaled(length: int, ratio: int) -> int:
        return length * ratio if up else length // ratio

    (size_t, size), (out_t, out) = sizes, outs
    stride_t, stride = (0 if s is None else int(s * (1 - overlap)) for s in sizes)
    in_time, in_space = size_t is not None and shape[0] > size_t, size is not None and max(shape[1:]) > size
    times = [
        (s, scaled(length(s) - 1, TIME) + (s[0] == 0))
        for s in spans(shape[0], size_t if in_time else None, stride_t, 1)
    ]
    times = [(span, frames) for span, frames in times if frames > 0]
    rows, columns = (
        [(s, scaled(length(s), SPACE)) for s in spans(n, size if in_space else None, stride)] for n in shape[1:]
    )
    tiles = tuple(
        Tile((t, i, j), time, row, column, (frames, height, width))
        for t, (time, frames) in enumerate(times)
        for i, (row, height) in enumerate(rows)
        for j, (column, width) in enumerate(columns)
    )
    keep_t, keep = scaled(stride_t, TIME), scaled(stride, SPACE)
    whole = (joined(times, keep_t, 1), joined(rows, keep), joined(columns, keep))
    return TileGrid(tiles, whole, (keep_t, keep), (int((out_t or 0) * overlap), int((out or 0) * overlap)))


def spans(whole: int, size: int | None, stride: int, more: int = 0) -> list[Span]:
    """[start, stop) of tiles of `size` and `more`; without a size, all of it."""
    if size is None:
        return [(0, whole)]
    return [(start, min(start + size + more, whole)) for start in range(0, whole, stride)]


def length(span: Span) -> int:
    return span[1] - span[0]


def joined(parts: list[tuple[Span, int]], keep: int, more: int = 0) -> int:
    """Length of the blended axis: `keep` of every part (and `more` of the first), and the last one whole."""
    return parts[-1][1] if len(parts) == 1 else (len(parts) - 1) * keep + more + parts[-1][1]


def tile_cost(tile: Tile) -> int:
    """Work of a tile, in numbers of its output: the VAE's convolutions are linear in them."""
    frames, height, width = tile.out_shape
    return (frames + (tile.time[0] > 0)) * height * width
