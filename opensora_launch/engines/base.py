"""What an engine does: cut or place the transformer's weights, attend over spread tokens, and encode the texts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from opensora_launch.engines.text_team import TextTeam
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model.kernels import Attend, KernelCall
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.parallel.streaming import StreamedBlocks
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import ModelConfig

Tick = Callable[[int], None]  # is called with the bytes that were read


@dataclass(frozen=True)
class Transformer:
    """The transformer on one rank. `blocks` is None if all weights stay on the device."""

    module: MMDiT
    blocks: StreamedBlocks | None


@runtime_checkable
class BlockEngine(Protocol):
    """The parallelism that runs the transformer and T5. All engines give the same video."""

    def attention(self, mesh: Mesh, num_text: int, total_tokens: int, kernel: KernelCall) -> Attend:
        """Return the `attend` for this rank's share of a sequence of `total_tokens`, the first `num_text` of text."""

    def load_transformer(
        self, source: WeightSource, placement: Placement, node: Axis, mesh: Mesh, tick: Tick
    ) -> Transformer:
        """Load the transformer on this rank. node: the ranks of this node that work on the same videos.

        All ranks of the video call this together. Raises UserError if the weights do not match the config.
        """

    def bytes_to_read(self, source: WeightSource, placement: Placement, node: Axis, mesh: Mesh) -> int:
        """Estimate the bytes that this rank reads in `load_transformer`."""

    def text_team(
        self, world: Axis, mesh: Mesh, model: ModelConfig, device: torch.device, dtype: torch.dtype
    ) -> TextTeam:
        """Return the ranks that encode the texts, on `device` in `dtype`. world: all ranks of the run."""
