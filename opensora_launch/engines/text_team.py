"""The ranks that encode the texts of a run together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from opensora_launch.model.text_encoders import TextEmbeddings, TextEncoders
from opensora_launch.parallel.mesh import Axis


@dataclass(frozen=True)
class TextTeam:
    """The ranks of `axis`, each with its part of the encoders. The first one knows the texts; the others help."""

    axis: Axis
    load: Callable[[], TextEncoders]

    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        """Encode the texts. Only the first rank calls this, once at most."""
        self._share(list(texts))
        return self.load().encode(texts)

    def dismiss(self) -> None:
        """Let the other ranks go. Only the first rank calls this, when it has no more texts."""
        self._share(None)

    def help(self) -> None:
        """Help the first rank until it dismisses the team. All other ranks call this."""
        while (texts := self._share(None)) is not None:
            self.load().encode(texts)

    def _share(self, texts: list[str] | None) -> list[str] | None:
        """Return the first rank's texts on every rank."""
        shared = [texts]
        if self.axis.size > 1:
            with self.axis.exchange(0):
                dist.broadcast_object_list(shared, self.axis.ranks[0], group=self.axis.group)
        return shared[0]
