"""The ColossalAI engine: ShardFormer cuts the transformer and T5, and its sequence parallel modes move tokens."""

from dataclasses import replace
from pathlib import Path

import torch

from opensora_launch.engines.base import Tick, Transformer
from opensora_launch.engines.colossal.cut_mmdit import cut_by_policy, load_by_layer
from opensora_launch.engines.colossal.cut_t5 import cut_t5
from opensora_launch.engines.colossal.sequence_modes import colossal_attention
from opensora_launch.engines.colossal.sharded_checkpoint import load_checkpoint
from opensora_launch.engines.text_team import TextTeam
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model.kernels import Attend, KernelCall
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.text_encoders import TextEncoders, load_text_encoders
from opensora_launch.model.weight_files import files_of
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import ModelConfig


class ColossalEngine:
    """See `BlockEngine`."""

    def attention(self, mesh: Mesh, total_tokens: int, kernel: KernelCall) -> Attend:
        return colossal_attention(mesh, total_tokens, kernel)

    def load_transformer(
        self, source: WeightSource, placement: Placement, node: Axis, mesh: Mesh, tick: Tick
    ) -> Transformer:
        source.check()
        wrapped = cut_by_policy(source.model.mmdit, mesh, source.device, source.dtype)
        module: MMDiT = wrapped.unwrap()
        if index := _index(source):
            load_checkpoint(wrapped, index, mesh)
            tick(source.nbytes // mesh.tp.size)
        else:
            load_by_layer(module, source.reader(), lambda nbytes: tick(nbytes // mesh.tp.size))
        return Transformer(module, None)

    def bytes_to_read(self, source: WeightSource, placement: Placement, node: Axis, mesh: Mesh) -> int:
        return source.nbytes // mesh.tp.size

    def text_team(
        self, world: Axis, mesh: Mesh, model: ModelConfig, device: torch.device, dtype: torch.dtype
    ) -> TextTeam:
        """Return a team of the run's first tp axis, each rank with a part of T5."""

        def load() -> TextEncoders:
            return cut_t5(load_text_encoders(model, device=torch.device("cpu"), dtype=dtype), mesh.tp, device)

        return TextTeam(replace(mesh.tp, ranks=tuple(range(mesh.tp.size)), index=world.index), load)


def _index(source: WeightSource) -> Path | None:
    """Return the index of a checkpoint of several files, which ColossalAI reads itself; None for other sources."""
    path = source.path
    if not source.stored or source.prefix or files_of(path) == [path]:
        return None
    return path if path.suffix == ".json" else path.with_name(f"{path.name}.index.json")
