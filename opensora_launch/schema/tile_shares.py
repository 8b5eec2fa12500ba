"""Deal the tiles of the VAE over the ranks of a video so that all have about as much to do. This is arithmetic.

Most tiles are computed by one rank each. Where tiles are few, or some are left over, all ranks share the largest ones:
each computes some parts of their frames (model/frame_shares.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from opensora_launch.schema.even_shares import share_sizes
from opensora_launch.schema.tiles import Bounds, Tile, VideoShape, part_frames, tile_cost

EXCHANGE = 0.1  # time that sharing adds to each rank's part of a tile: edges of its frames, from each layer to the next
FEWEST = 2  # latents of a rank: a convolution sees two frames before its own, which one other rank must have


@dataclass(frozen=True)
class TileDeal:
    """Which tiles every rank computes, by index: those in its hand alone, and `shared` ones together.

    A shared tile has the parts of each of the first ranks, [first, stop).
    """

    shared: Mapping[int, tuple[Bounds, ...]]
    hands: tuple[tuple[int, ...], ...]
    loads: tuple[int, ...]  # each rank's pixels

    @property
    def busiest(self) -> float:
        """The pixels of the busiest rank, relative to the mean."""
        return max(self.loads) * len(self.loads) / sum(self.loads)


def deal_tiles(tiles: Sequence[Tile], ranks: int) -> TileDeal:
    """Share as many of the largest tiles as pays, and deal the others whole."""
    order = _largest_first(tiles)
    shares = [shares_of(tiles[i], ranks, turn) for turn, i in enumerate(order)]
    most = next((count for count, share in enumerate(shares) if len(share) == 1), len(order))
    ways = [_deal(tiles, dict(zip(order[:n], shares, strict=False)), order[n:], ranks) for n in range(most + 1)]

    def seconds(deal: TileDeal) -> float:
        return max(deal.loads) + EXCHANGE * sum(tile_cost(tiles[i]) for i in deal.shared) / ranks

    return min(ways, key=seconds)


def deal_whole(tiles: Sequence[Tile], ranks: int) -> TileDeal:
    """Deal all tiles whole."""
    return _deal(tiles, {}, _largest_first(tiles), ranks)


def _largest_first(tiles: Sequence[Tile]) -> list[int]:
    return sorted(range(len(tiles)), key=lambda i: (-tile_cost(tiles[i]), i))


def _deal(
    tiles: Sequence[Tile], shared: Mapping[int, tuple[Bounds, ...]], whole: Sequence[int], ranks: int
) -> TileDeal:
    """Count what is shared, then give each whole tile to the rank with the least so far."""
    loads, hands = [0] * ranks, [list[int]() for _ in range(ranks)]
    for i, shares in shared.items():
        for rank, share in enumerate(shares):
            loads[rank] += share_cost(tiles[i], share)
    for i in whole:
        rank = loads.index(min(loads))
        hands[rank].append(i)
        loads[rank] += tile_cost(tiles[i])
    return TileDeal(shared, tuple(tuple(sorted(hand)) for hand in hands), tuple(loads))


def shares_of(tile: Tile, ranks: int, turn: int) -> tuple[Bounds, ...]:
    """Return the parts of a tile that each of the first ranks computes; fewer ranks if its latents are few.

    The shares of one more part go to the first ranks or the last ones, by turns.
    """
    for count in range(min(ranks, len(tile.parts)), 1, -1):
        sizes = share_sizes(len(tile.parts), count)[:: -1 if turn % 2 else 1]
        stops = list(accumulate(sizes, initial=0))
        if all(tile.parts[b - 1][1] - tile.parts[a][0] >= FEWEST for a, b in pairwise(stops)):
            return tuple(pairwise(stops))
    return ((0, len(tile.parts)),)


def share_cost(tile: Tile, share: Bounds) -> int:
    """Return the work of some parts of a tile in numbers of their output."""
    return sum(part_frames(tile)[slice(*share)]) * tile.out_shape[1] * tile.out_shape[2]


def share_shape(tile: Tile, share: Bounds) -> VideoShape:
    """Return the shape of the output of some parts; the first frame of a tile after the first in time is dropped."""
    frames = sum(part_frames(tile)[slice(*share)]) - (share[0] == 0 and tile.time[0] > 0)
    return (frames, *tile.out_shape[1:])
