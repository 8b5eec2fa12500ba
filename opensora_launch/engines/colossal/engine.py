"""The ColossalAI engine: ShardFormer cuts the transformer and T5, and its sequence parallel modes move tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import CpuAccelerator, set_accelerator
from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule
from colossalai.checkpoint_io import HybridParallelCheckpointIO
from colossalai.lazy import LazyInitContext
from colossalai.shardformer import ShardConfig, ShardFormer
from torch import nn

from opensora_launch.engines.base import Tick, Transformer
from opensora_launch.engines.colossal.policies import MmditPolicy, T5Policy
from opensora_launch.engines.colossal.sequence_modes import colossal_attention
from opensora_launch.engines.text_team import TextTeam
from opensora_launch.engines.weight_source import ReadTensor, WeightSource
from opensora_launch.errors import UserError
from opensora_launch.model.kernels import Attend, KernelCall
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.text_encoders import TextEncoders, load_text_encoders
from opensora_launch.model.weight_files import files_of
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import MmditConfig, ModelConfig


def load_checkpoint(module: HybridParallelModule, index: Path, mesh: Mesh) -> None:
    """Load this rank's part from the files of an index, saved on any number of ranks. Names were checked before."""
    single = single_rank_group(mesh)
    HybridParallelCheckpointIO(single, single, mesh.tp.group, single, 0, verbose=False).load_model(module, str(index))


def save_checkpoint(module: HybridParallelModule, folder: Path, mesh: Mesh, megabytes: int = 1024) -> None:
    """Write the whole in files of at most so many MB. All ranks call this; those of the first tp axis write."""
    single = single_rank_group(mesh)
    store = HybridParallelCheckpointIO(mesh.shares.group, single, mesh.tp.group, single, 0, verbose=False)
    store.save_model(module, str(folder), shard=True, use_safetensors=True, size_per_shard=megabytes)


def single_rank_group(mesh: Mesh) -> dist.ProcessGroup:
    """Return a group of this rank only: one of both axes has size 1, as there is one sequence mode at a time."""
    return (mesh.ring if mesh.ring.size == 1 else mesh.ulysses).group


def cut_by_policy(cfg: MmditConfig, mesh: Mesh, device: torch.device, dtype: torch.dtype) -> HybridParallelModule:
    """Wrap the transformer in HybridParallelPlugin's module, with this rank's part of each layer on the device.

    The weights are undefined. The plugin itself is not used: it would make groups of its own, wrap the module in DDP
    for gradients, and round all inputs to the weights' dtype, even timesteps. For the same reason, call the module
    inside, not the wrapper.
    """
    use_device(device)
    with LazyInitContext(default_device=device):
        module = MMDiT(cfg).to(dtype)
    tp, single = mesh.tp.group, single_rank_group(mesh)
    config = ShardConfig(tensor_parallel_process_group=tp, enable_tensor_parallelism=mesh.tp.size > 1)
    wrapped = HybridParallelModule(
        module, precision="fp32", shard_config=config, dp_group=single, tp_group=tp, sp_group=single,
        use_ddp=False, ddp_config={}, custom_policy=MmditPolicy(mesh.tp),
    )  # fmt: skip
    wrapped.requires_grad_(False).eval()
    return wrapped


def load_by_layer(module: nn.Module, read: ReadTensor, tick: Tick) -> None:
    """Load each tensor by its public name; its layer keeps a part. One whole tensor is held at a time."""
    for path, layer in module.named_modules():
        for leaf, _ in layer.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            whole = read(name)
            layer.load_state_dict({leaf: whole}, strict=False)
            tick(whole.nbytes)


def cut_t5(encoders: TextEncoders, axis: Axis, device: torch.device) -> TextEncoders:
    """Move encoders from the CPU to the device: this rank's heads and feed-forward channels of T5, the rest whole.

    Raises UserError if the tp degree does not divide T5's heads and feed-forward.
    """
    if axis.size > 1:
        t5: Any = encoders.t5.network.config
        if t5.num_heads % axis.size or t5.d_ff % axis.size:
            raise UserError(
                f"engine=colossalai cuts T5 too, and layout.tp={axis.size} does not divide its {t5.num_heads} heads "
                f"and feed-forward of {t5.d_ff}; use another layout.tp, or engine=native"
            )
        use_device(torch.device("cpu"))  # the weights are there while they are cut
        config = ShardConfig(tensor_parallel_process_group=axis.group, enable_tensor_parallelism=True)
        ShardFormer(config).optimize(encoders.t5.network, policy=T5Policy(axis))
    for encoder in (encoders.t5, encoders.clip):
        encoder.network.to(device).requires_grad_(False).eval()
    return encoders


class ColossalEngine:
    """See `BlockEngine`."""

    def attention(self, mesh: Mesh, num_text: int, total_tokens: int, kernel: KernelCall) -> Attend:
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


class SeededCpu(CpuAccelerator):  # type: ignore[misc]
    """ColossalAI's CPU with random generator methods that its layers call and that 0.5.0 lacks."""

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed


def use_device(device: torch.device) -> None:
    """Let ColossalAI work on a CPU, or on the current GPU, which the rank has set."""
    set_accelerator("cuda" if device.type == "cuda" else SeededCpu())
