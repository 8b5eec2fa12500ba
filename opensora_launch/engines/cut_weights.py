"""Cut the transformer's weights over the tp axis: each rank holds its heads and its feed-forward channels."""

import torch
from torch import Tensor, nn

from opensora_launch.engines.base import Tick
from opensora_launch.engines.weight_source import ReadTensor
from opensora_launch.model.cuts import Cut, CutKind, mmdit_cuts
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.tensor_parallel import gather_results, own_part, sum_results
from opensora_launch.schema.config import MmditConfig


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
        part = _part(read(name), leaf, cuts.get(path), axis)
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


def _part(whole: Tensor, leaf: str, cut: Cut | None, axis: Axis) -> Tensor:
    if cut is None or (cut.kind is CutKind.inputs and leaf == "bias"):
        return whole
    return own_part(whole, 1 if cut.kind is CutKind.inputs else 0, cut.segments, axis)
