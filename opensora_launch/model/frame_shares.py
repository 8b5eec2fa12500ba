"""Which frames of a tile this rank decodes, and how layers see the frames of other ranks.

The causal VAE computes a tile in parts of its frames, which are cut by the tile's shape alone. Ranks may divide the
parts (schema/tile_shares.py); then a convolution gets the last frames of the part before, a norm the moments of all
frames, in their order, and attention the keys and values of all earlier frames. So the bits of a tile are the same,
whether one rank computes all of it or eight ranks do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Shaped
from torch import Tensor

from opensora_launch.model.frame_norms import EAGER_NORMS, Norms
from opensora_launch.schema.tiles import Bounds


@runtime_checkable
class FrameLink(Protocol):
    """The way to the ranks that share a tile."""

    def before(self, last: Shaped[Tensor, "B C n H W"]) -> Shaped[Tensor, "B C n H W"] | None:
        """Send our last frames to the next rank, and return those of the rank before; None on the first."""

    def gather(self, own: Shaped[Tensor, "t ..."], frames: Sequence[int]) -> Shaped[Tensor, "T ..."]:
        """Return what all ranks have of each frame, in order; `frames` is how many each of them has."""


@dataclass(frozen=True)
class FrameShare:
    """The parts of a tile (in latents) that each rank computes, [first, stop), and which of them this rank is."""

    parts: tuple[Bounds, ...]
    ranks: tuple[Bounds, ...]
    index: int = 0
    link: FrameLink | None = None  # if there are several ranks

    @property
    def latents(self) -> Bounds:
        """The latents of this rank."""
        first, stop = self.ranks[self.index]
        return self.parts[first][0], self.parts[stop - 1][1]


@dataclass(frozen=True)
class FrameLevel:
    """A layer's place between latents and frames: each latent is `rate` frames, and the first one is a single frame.

    Without a share, this rank has all frames, and computes them at once.
    """

    share: FrameShare | None = None
    rate: int = 1
    norms: Norms = EAGER_NORMS

    def up(self, factor: int) -> "FrameLevel":
        return replace(self, rate=self.rate * factor)

    @property
    def is_first(self) -> bool:
        """Whether no frame is before ours."""
        return self.share is None or self.share.index == 0

    def _frame(self, latent: int) -> int:
        return max(0, 1 + (latent - 1) * self.rate)

    @property
    def frames(self) -> tuple[int, ...]:
        """How many frames each rank has."""
        assert self.share is not None
        parts = self.share.parts
        return tuple(self._frame(parts[b - 1][1]) - self._frame(parts[a][0]) for a, b in self.share.ranks)

    @property
    def earlier(self) -> int:
        """How many frames are before ours."""
        return 0 if self.share is None else sum(self.frames[: self.share.index])

    def pieces(self, frames: int, at_once: int) -> Iterator[Bounds]:
        """Yield the bounds of the parts of our `frames`, in order, cut again where too large."""
        bounds = [(0, frames)]
        if self.share is not None:
            own = self.share.parts[slice(*self.share.ranks[self.share.index])]
            bounds = [(self._frame(a) - self.earlier, self._frame(b) - self.earlier) for a, b in own]
        for first, stop in bounds:
            for start in range(first, stop, at_once):
                yield start, min(start + at_once, stop)

    def before(self, x: Shaped[Tensor, "B C T H W"], count: int) -> Shaped[Tensor, "B C n H W"] | None:
        """Return the frames before ours; None if ours are the first."""
        if self.share is None or self.share.link is None or count == 0:
            return None
        return self.share.link.before(x[:, :, -count:])

    def gathered(self, own: Shaped[Tensor, "t ..."]) -> Shaped[Tensor, "T ..."]:
        """Return what all ranks have of each frame, in order."""
        return own if self.share is None or self.share.link is None else self.share.link.gather(own, self.frames)


WHOLE = FrameLevel()
