"""The diffusion transformer under ColossalAI: built lazily, cut by ShardFormer, filled tensor by tensor."""

from collections.abc import Callable

import torch
from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule
from colossalai.lazy import LazyInitContext
from colossalai.shardformer import ShardConfig
from torch import Tensor, nn

from opensora_launch.engines.colossal.accelerator import use_device
from opensora_launch.engines.colossal.policy import MmditPolicy
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.schema.config import MmditConfig


def alone(mesh: Mesh) -> Axis:
    """An axis that is this rank only: there is one sequence mode at a time."""
    return mesh.ring if mesh.ring.size == 1 else mesh.ulysses


def cut_by_policy(cfg: MmditConfig, mesh: Mesh, target: tuple[torch.device, torch.dtype]) -> HybridParallelModule:
    """HybridParallelPlugin's module around ours, each layer's part made on the target; its numbers mean nothing yet.

    The module alone, not the plugin: that would make groups of its own, wrap us in DDP for gradients, and round all
    inputs to the weights' dtype, timesteps too. So the module inside is the one to call.
    """
    device, dtype = target
    use_device(device)
    with LazyInitContext(default_device=device):
        module = MMDiT(cfg).to(dtype)
    tp, single = mesh.tp.group, alone(mesh).group
    config = ShardConfig(tensor_parallel_process_group=tp, enable_tensor_parallelism=mesh.tp.size > 1)
    wrapped = HybridParallelModule(
        module, precision="fp32", shard_config=config, dp_group=single, tp_group=tp, sp_group=single,
        use_ddp=False, ddp_config={}, custom_policy=MmditPolicy(mesh.tp),
    )  # fmt: skip
    wrapped.requires_grad_(False).eval()
    return wrapped


def fill(module: nn.Module, read: Callable[[str], Tensor], tick: Callable[[int], None]) -> None:
    """Every tensor by its public name; the layers keep their part of it. One whole tensor is held at a time."""
    for path, layer in module.named_modules():
        for leaf, _ in layer.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            whole = read(name)
            layer.load_state_dict({leaf: whole}, strict=False)
            tick(whole.nbytes)
