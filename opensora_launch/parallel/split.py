"""Split a whole into shares, one per rank. Sizes differ by at most one; nothing is padded and nothing must divide."""

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from opensora_launch.schema.even_shares import share_slices


@dataclass(frozen=True)
class TokenShare:
    """One rank's share of a sequence of `num_text` text tokens followed by video tokens."""

    num_text: int
    start: int
    stop: int

    @classmethod
    def of(cls, num_text: int, total: int, index: int, ranks: int) -> "TokenShare":
        mine = share_slices(total, ranks)[index]
        return cls(num_text, mine.start, mine.stop)

    @property
    def text(self) -> slice:
        """The text tokens of the share; empty if it starts after the text."""
        return slice(min(self.start, self.num_text), min(self.stop, self.num_text))

    @property
    def video(self) -> slice:
        """The video tokens of the share, counted from the first video token; empty if it holds only text."""
        return slice(max(self.start - self.num_text, 0), max(self.stop - self.num_text, 0))

    def cut_text(self, x: Shaped[Tensor, "B T C"]) -> Shaped[Tensor, "B t C"]:
        return x[:, self.text]

    def cut_video(self, x: Shaped[Tensor, "B S C"]) -> Shaped[Tensor, "B s C"]:
        return x[:, self.video]
