"""Build the diffusion transformer under ColossalAI: lazily, cut by ShardFormer, and loaded tensor by tensor."""

import torch
import torch.distributed as dist
from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule
from colossalai.lazy import LazyInitContext
from colossalai.shardformer import ShardConfig
from torch import nn

from opensora_launch.engines.base import Tick
from opensora_launch.engines.colossal.accelerator import use_device
from opensora_launch.engines.colossal.policies import MmditPolicy
from opensora_launch.engines.weight_source import ReadTensor
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.parallel.mesh import Mesh
from opensora_launch.schema.config import MmditConfig


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
