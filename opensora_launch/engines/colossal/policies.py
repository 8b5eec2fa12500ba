"""ShardFormer policies that say how the layers of the diffusion transformer and of T5 are cut."""

from typing import Any

from colossalai.shardformer.layer import Embedding1D, Linear1D_Col
from colossalai.shardformer.policies.base_policy import (
    ModulePolicyDescription,
    Policy,
    SubModuleReplacementDescription,
)
from torch import nn

from opensora_launch.engines.colossal.cut_layers import FusedColumns, FusedRows, GatheredColumns, SummedRows
from opensora_launch.model.cuts import Cut, CutKind, mmdit_cuts
from opensora_launch.model.mmdit import DoubleBlock, SingleBlock
from opensora_launch.parallel.mesh import Axis


class _TensorParallel(Policy):  # type: ignore[misc]
    """A policy that only replaces layers. `axis` times their exchanges."""

    def __init__(self, axis: Axis) -> None:
        super().__init__()
        self.axis = axis

    def config_sanity_check(self) -> None:
        """Accept everything: the planner refuses what does not divide (plan/layout.py)."""

    def preprocess(self) -> nn.Module:
        return self.model  # type: ignore[no-any-return]

    def postprocess(self) -> nn.Module:
        return self.model  # type: ignore[no-any-return]

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
        target, more = {
            CutKind.outputs: (FusedColumns, {"split_sizes": sizes}),
            CutKind.inputs: (FusedRows, {"split_sizes": sizes, "axis": self.axis}),
            CutKind.gathered: (GatheredColumns, {"axis": self.axis}),
        }[cut.kind]
        return SubModuleReplacementDescription(suffix=suffix, target_module=target, kwargs=more)


def _suffix(name: str) -> str:
    """Write an element of a list as ShardFormer does: "mlp[0]"."""
    head, _, last = name.rpartition(".")
    return f"{head}[{last}]" if last.isdigit() else name


class T5Policy(_TensorParallel):
    """Cut heads and feed-forward of an encoder. ColossalAI's own policy fails on T5 v1.1 with gated feed-forward."""

    def module_policy(self) -> dict[str, ModulePolicyDescription]:
        config, degree = self.model.config, self.shard_config.tensor_parallel_size
        attention: dict[str, Any] = {
            "n_heads": config.num_heads // degree,
            "inner_dim": config.num_heads * config.d_kv // degree,
        }
        bias = SubModuleReplacementDescription(
            suffix="relative_attention_bias",
            target_module=Embedding1D,
            kwargs={"gather_output": False},
            ignore_if_not_exist=True,
        )
        qkv = [self.columns(name) for name in ("q", "k", "v")]
        gated = [self.columns("wi_0"), self.columns("wi_1"), self.rows("wo")]
        return {
            "T5Attention": ModulePolicyDescription(
                attribute_replacement=attention, sub_module_replacement=[*qkv, self.rows("o"), bias]
            ),
            "T5DenseGatedActDense": ModulePolicyDescription(sub_module_replacement=gated),
            "T5DenseActDense": ModulePolicyDescription(sub_module_replacement=[self.columns("wi"), self.rows("wo")]),
        }
