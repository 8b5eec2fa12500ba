"""The native engine: weights are placed and streamed, or cut over the tp axis; tokens move by Ulysses and ring."""

from dataclasses import replace

import torch
from torch import nn

from opensora_launch.engines.base import Tick, Transformer
from opensora_launch.engines.placed_weights import place_transformer
from opensora_launch.engines.text_team import TextTeam, load_fitting_encoders
from opensora_launch.engines.weight_source import ReadTensor, WeightSource
from opensora_launch.model.cuts import CutKind, mmdit_cuts
from opensora_launch.model.kernels import Attend, KernelCall
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.parallel.sequence_attention import sharded_attention
from opensora_launch.parallel.tensor_parallel import gather_results, own_part, sum_results
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import MmditConfig, ModelConfig, Shard


def cut_transformer(
    cfg: MmditConfig, read: ReadTensor, axis: Axis, device: torch.device, dtype: torch.dtype, tick: Tick
) -> MMDiT:
    """Build the transformer with this rank's part of every layer that is cut, and the other layers whole.

    `tick` gets the bytes of each tensor that was read.
    """
    with torch.device("meta"):
        module = MMDiT(cfg)
    cuts = mmdit_cuts(cfg)
    for name in module.state_dict():
        path, _, leaf = name.rpartition(".")
        cut, part = cuts.get(path), read(name)
        if cut and cut.kind is not CutKind.inputs:
            part = own_part(part, 0, cut.segments, axis)
        elif cut and leaf != "bias":
            part = own_part(part, 1, cut.segments, axis)
        setattr(module.get_submodule(path), leaf, nn.Parameter(part.to(device, dtype), requires_grad=False))
        tick(part.nbytes)
    for path, cut in cuts.items():
        layer = module.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        if cut.kind is CutKind.inputs:
            sum_results(layer, axis)
        elif cut.kind is CutKind.gathered:
            gather_results(layer, sum(segment.channels for segment in cut.segments), axis)
    return module.requires_grad_(False).eval()


class NativeEngine:
    """See `BlockEngine`."""

    def attention(self, mesh: Mesh, num_text: int, total_tokens: int, kernel: KernelCall) -> Attend:
        return sharded_attention(mesh, num_text, total_tokens, kernel)

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
