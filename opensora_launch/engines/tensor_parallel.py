"""The diffusion transformer with its weights cut over the tp axis: a rank holds its heads and feed-forward channels."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from opensora_launch.engines.native import Source, Tick
from opensora_launch.model.cuts import Cut, Kind, mmdit_cuts
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.shapes import mmdit_shapes
from opensora_launch.model.weights import random_tensor, read_tensors
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.tensor import gather_results, own_part, sum_results
from opensora_launch.schema.config import Init, MmditConfig

Read = Callable[[str], Tensor]  # a whole tensor by its name


def reader(source: Source) -> Read:
    """Tensors of the source's files, mapped and not read yet; or random ones."""
    if source.model.init is Init.checkpoint:
        return read_tensors(source.path, device=torch.device("cpu"), prefix=source.prefix).__getitem__
    shapes = {name: torch.Size(shape) for name, shape in mmdit_shapes(source.model.mmdit).items()}
    return lambda name: random_tensor(name, shapes[name], source.model.init_seed, source.device)


def cut_transformer(
    cfg: MmditConfig, read: Read, axis: Axis, target: tuple[torch.device, torch.dtype], tick: Tick
) -> MMDiT:
    """Our part of every layer that is cut and the others whole, on the target's device in its dtype.

    `tick` gets the bytes of every tensor that was read.
    """
    device, dtype = target
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
        if cut.kind is Kind.inputs:
            sum_results(layer, axis)
        elif cut.kind is Kind.gathered:
            gather_results(layer, sum(piece.count * piece.size for piece in cut.pieces), axis)
    return module.requires_grad_(False).eval()


def _part(whole: Tensor, leaf: str, cut: Cut | None, axis: Axis) -> Tensor:
    if cut is None or (cut.kind is Kind.inputs and leaf == "bias"):
        return whole
    dim = 1 if cut.kind is Kind.inputs else 0
    return own_part(whole, dim, [(piece.count, piece.size) for piece in cut.pieces], axis)
