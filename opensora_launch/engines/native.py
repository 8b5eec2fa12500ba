"""The native engine: weights are placed and streamed, or cut over the tp axis; tokens move by Ulysses and ring."""

from dataclasses import replace

import torch

from opensora_launch.engines.base import Tick, Transformer
from opensora_launch.engines.cut_weights import cut_transformer
from opensora_launch.engines.placed_weights import place_transformer
from opensora_launch.engines.streamed_t5 import load_fitting_encoders
from opensora_launch.engines.text_team import TextTeam
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model.kernels import Attend, KernelCall
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.parallel.sequence_attention import sharded_attention
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import ModelConfig, Shard


class NativeEngine:
    """See `BlockEngine`."""

    def attention(self, mesh: Mesh, total_tokens: int, kernel: KernelCall) -> Attend:
        return sharded_attention(mesh, total_tokens, kernel)

    def load_transformer(
        self, source: WeightSource, placement: Placement, node: Axis, mesh: Mesh, tick: Tick
    ) -> Transformer:
        if mesh.tp.size == 1:
            return place_transformer(source, placement, node, mesh.video, tick)
        source.check()
        cut = cut_transformer(source.model.mmdit, source.reader(), mesh.tp, source.device, source.dtype, tick)
        return Transformer(cut, None)

    def bytes_to_read(self, source: WeightSource, placement: Placement, node: Axis, mesh: Mesh) -> int:
        if mesh.tp.size > 1:
            return source.nbytes // mesh.tp.size
        return source.nbytes // (mesh.video.size if placement.shard is Shard.all else node.size)

    def text_team(
        self, world: Axis, mesh: Mesh, model: ModelConfig, device: torch.device, dtype: torch.dtype
    ) -> TextTeam:
        """Return a team of the run's first rank."""
        first = replace(world, ranks=world.ranks[:1], index=0)
        return TextTeam(first, lambda: load_fitting_encoders(model, first, device, dtype))
