"""ColossalAI's linear layers, cut over a tp axis that times their exchanges."""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from colossalai.lazy import LazyInitContext
from colossalai.shardformer.layer import FusedLinear1D_Col, FusedLinear1D_Row, Linear1D_Col, Linear1D_Row
from colossalai.shardformer.layer._operation import gather_forward_split_backward, reduce_forward
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.parallel.mesh import Axis


class GatheredColumns(Linear1D_Col):  # type: ignore[misc]
    """A layer whose outputs are cut, and gathered again on every rank."""

    @staticmethod
    def from_native_module(module: nn.Linear, process_group: dist.ProcessGroup, axis: Axis) -> "GatheredColumns":
        made = GatheredColumns(**_taken_over(module), process_group=process_group)
        made.axis = axis
        return made

    def forward(self, input_: Float[Tensor, "*lead C"]) -> Float[Tensor, "*lead out"]:
        part = F.linear(input_, self.weight, self.bias)
        with self.axis.exchange(part.nbytes * (self.axis.size - 1)):
            out: Tensor = gather_forward_split_backward(part, -1, self.process_group)
        return out


class SummedRows(Linear1D_Row):  # type: ignore[misc]
    """A layer whose inputs are cut, and whose results are summed."""

    @staticmethod
    def from_native_module(module: nn.Linear, process_group: dist.ProcessGroup, axis: Axis) -> "SummedRows":
        made = SummedRows(**_taken_over(module), process_group=process_group)
        made.axis = axis
        return made

    def forward(self, input_: Float[Tensor, "*lead c"]) -> Float[Tensor, "*lead C"]:
        return _summed(self, input_)


class FusedColumns(FusedLinear1D_Col):  # type: ignore[misc]
    """Several matrices in one layer: the outputs of each are cut by themselves."""

    @staticmethod
    def from_native_module(
        module: nn.Linear, process_group: dist.ProcessGroup, split_sizes: list[int]
    ) -> "FusedColumns":
        made = FusedColumns(**_taken_over(module), process_group=process_group, split_sizes=split_sizes)
        for parameter in made.parameters():
            parameter.gather_fn = partial(_put_together, sizes=split_sizes, dim=0, group=process_group)
        return made


class FusedRows(FusedLinear1D_Row):  # type: ignore[misc]
    """A layer of several inputs in order, each cut by itself; its results are summed."""

    @staticmethod
    def from_native_module(
        module: nn.Linear, process_group: dist.ProcessGroup, split_sizes: list[int], axis: Axis
    ) -> "FusedRows":
        made = FusedRows(**_taken_over(module), process_group=process_group, split_sizes=split_sizes)
        made.weight.gather_fn = partial(_put_together, sizes=split_sizes, dim=1, group=process_group)
        made.axis = axis
        return made

    def forward(self, input_: Float[Tensor, "*lead c"]) -> Float[Tensor, "*lead C"]:
        return _summed(self, input_)


def _taken_over(module: nn.Linear) -> dict[str, Any]:
    """Return what ColossalAI's constructors take from a layer. Its weights are created now."""
    LazyInitContext.materialize(module)
    return {
        "in_features": module.in_features,
        "out_features": module.out_features,
        "bias": module.bias is not None,
        "device": module.weight.device,
        "weight": module.weight,
        "bias_": module.bias,
    }


def _summed(layer: Any, x: Float[Tensor, "*lead c"]) -> Float[Tensor, "*lead C"]:
    summand = F.linear(x, layer.weight)
    with layer.axis.exchange(2 * summand.nbytes * (layer.axis.size - 1) // layer.axis.size):
        out: Tensor = reduce_forward(summand, layer.process_group)
    return out if layer.bias is None else out + layer.bias


def _put_together(part: Tensor, *, sizes: list[int], dim: int, group: dist.ProcessGroup) -> Tensor:
    """Gather the whole of a fused weight for a checkpoint. ColossalAI's own way needs a GPU."""
    world = dist.get_world_size(group)
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world)]
    dist.all_gather(parts, part.contiguous(), group=group)
    split = [x.split([size // world for size in sizes], dim) for x in parts]
    return torch.cat([piece for pieces in zip(*split, strict=True) for piece in pieces], dim)
