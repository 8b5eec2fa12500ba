"""ShardFormer policies that say how the layers of the diffusion transformer and of T5 are cut."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from colossalai.lazy import LazyInitContext
from colossalai.shardformer.layer import Embedding1D, FusedLinear1D_Col, FusedLinear1D_Row, Linear1D_Col, Linear1D_Row
from colossalai.shardformer.layer._operation import gather_forward_split_backward, reduce_forward
from colossalai.shardformer.policies.base_policy import ModulePolicyDescription, Policy, SubModuleReplacementDescription
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.model.blocks import DoubleBlock, SingleBlock
from opensora_launch.model.cuts import Cut, CutKind, mmdit_cuts
from opensora_launch.parallel.mesh import Axis


class _Cut:
    """How ShardFormer makes a layer of ours from nn.Linear. `axis` times its exchanges. Fused ones have sizes."""

    cut_dim = 0  # of the weight, and of a bias that has so many

    @classmethod
    def from_native_module(
        cls: Any, module: nn.Linear, process_group: dist.ProcessGroup, axis: Axis, split_sizes: Sequence[int] = ()
    ) -> Any:
        LazyInitContext.materialize(module)  # creates its weights
        made = cls(
            in_features=module.in_features, out_features=module.out_features, bias=module.bias is not None,
            device=module.weight.device, weight=module.weight, bias_=module.bias, process_group=process_group,
            **({"split_sizes": split_sizes} if split_sizes else {}),
        )  # fmt: skip
        made.axis = axis
        if split_sizes:
            whole = partial(_put_together, sizes=split_sizes, dim=cls.cut_dim, group=process_group)
            for parameter in (p for p in made.parameters() if p.dim() > cls.cut_dim):
                parameter.gather_fn = whole
        return made


class GatheredColumns(_Cut, Linear1D_Col):  # type: ignore[misc]
    """A layer whose outputs are cut, and gathered again on every rank."""

    def forward(self, input_: Float[Tensor, "*lead C"]) -> Float[Tensor, "*lead out"]:
        part = F.linear(input_, self.weight, self.bias)
        with self.axis.exchange(part.nbytes * (self.axis.size - 1)):
            out: Tensor = gather_forward_split_backward(part, -1, self.process_group)
        return out


class FusedColumns(_Cut, FusedLinear1D_Col):  # type: ignore[misc]
    """Several matrices in one layer: the outputs of each are cut by themselves."""


class _Summed(_Cut):
    """A layer whose inputs are cut, and whose results are summed."""

    cut_dim = 1

    def forward(self: Any, input_: Float[Tensor, "*lead c"]) -> Float[Tensor, "*lead C"]:
        summand = F.linear(input_, self.weight)
        with self.axis.exchange(2 * summand.nbytes * (self.axis.size - 1) // self.axis.size):
            out: Tensor = reduce_forward(summand, self.process_group)
        return out if self.bias is None else out + self.bias


class SummedRows(_Summed, Linear1D_Row):  # type: ignore[misc]
    """Such a layer of one input."""


class FusedRows(_Summed, FusedLinear1D_Row):  # type: ignore[misc]
    """Such a layer of several inputs in order, each cut by itself."""


def _put_together(part: Tensor, *, sizes: Sequence[int], dim: int, group: dist.ProcessGroup) -> Tensor:
    """Gather the whole of a fused weight for a checkpoint. ColossalAI's own way needs a GPU."""
    world = dist.get_world_size(group)
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world)]
    dist.all_gather(parts, part.contiguous(), group=group)
    split = [x.split([size // world for size in sizes], dim) for x in parts]
    return torch.cat([piece for pieces in zip(*split, strict=True) for piece in pieces], dim)


class _TensorParallel(Policy):  # type: ignore[misc]
    """A policy that only replaces layers. `axis` times their exchanges."""

    def __init__(self, axis: Axis) -> None:
        super().__init__()
        self.axis = axis

    def config_sanity_check(self) -> None:
        """Accept everything: the planner refuses what does not divide (plan/layout.py)."""

    def preprocess(self) -> nn.Module:
        return self.model  # type: ignore[no-any-return]

    postprocess = preprocess

    def columns(self, suffix: str) -> SubModuleReplacementDescription:
        return SubModuleReplacementDescription(suffix=suffix, target_module=Linear1D_Col)

    def rows(self, suffix: str) -> SubModuleReplacementDescription:
        return SubModuleReplacementDescription(suffix=suffix, target_module=SummedRows, kwargs={"axis": self.axis})


class MmditPolicy(_TensorParallel):
    """Cut heads and feed-forward by column and row, as `mmdit_cuts` names them, and modulation by column, gathered."""

    def module_policy(self) -> dict[type[nn.Module], ModulePolicyDescription]:
        if not self.shard_config.enable_tensor_parallelism:
            return {}
        cuts = mmdit_cuts(self.model.cfg)
        found: dict[type[nn.Module], ModulePolicyDescription] = {}
        for block, prefix in ((DoubleBlock, "double_blocks.0."), (SingleBlock, "single_blocks.0.")):
            mine = {name.removeprefix(prefix): cut for name, cut in cuts.items() if name.startswith(prefix)}
            replaced = [self._described(_suffix(name), cut) for name, cut in mine.items()]
            found[block] = ModulePolicyDescription(sub_module_replacement=replaced)
        return found

    def _described(self, suffix: str, cut: Cut) -> SubModuleReplacementDescription:
        sizes = [segment.channels for segment in cut.segments]
        if len(sizes) == 1 and cut.kind is CutKind.outputs:
            return self.columns(suffix)
        if len(sizes) == 1 and cut.kind is CutKind.inputs:
            return self.rows(suffix)
        fused = {CutKind.outputs: FusedColumns, CutKind.inputs: FusedRows}
        target = fused.get(cut.kind, GatheredColumns)
        more = {"split_sizes": sizes} if cut.kind in fused else {}
        return SubModuleReplacementDescription(suffix=suffix, target_module=target, kwargs=more | {"axis": self.axis})


def _suffix(name: str) -> str:
    """Write an element of a list as ShardFormer does: "mlp[0]"."""
    head, _, last = name.rpartition(".")
    return f"{head}[{last}]" if last.isdigit() else name


class T5Policy(_TensorParallel):
    """Cut heads and feed-forward of an encoder. ColossalAI's own policy fails on T5 v1.1 with gated feed-forward."""

    def module_policy(self) -> dict[str, ModulePolicyDescription]:
        config, degree = self.model.config, self.shard_config.tensor_parallel_size
        inner = config.num_heads * config.d_kv // degree
        attention: dict[str, Any] = {"n_heads": config.num_heads // degree, "inner_dim": inner}
        bias = SubModuleReplacementDescription(
            suffix="relative_attention_bias", target_module=Embedding1D, kwargs={"gather_output": False},
            ignore_if_not_exist=True,
        )  # fmt: skip
        qkv = [self.columns(name) for name in ("q", "k", "v")]
        gated = [self.columns("wi_0"), self.columns("wi_1"), self.rows("wo")]
        return {
            "T5Attention": ModulePolicyDescription(
                attribute_replacement=attention, sub_module_replacement=[*qkv, self.rows("o"), bias]
            ),
            "T5DenseGatedActDense": ModulePolicyDescription(sub_module_replacement=gated),
            "T5DenseActDense": ModulePolicyDescription(sub_module_replacement=[self.columns("wi"), self.rows("wo")]),
        }
