"""Run torch's context_parallel and diffusers' ContextParallelConfig on CPU and gloo, for the races of bench_parallel.

Neither is made for a CPU, so this module installs shims, in this process only:
* `aten::_scaled_dot_product_flash_attention`, which both call for a part of the keys, has no CPU kernel. The shim
  registers one that calls torch's own flash kernel for CPUs.
* On a CPU, `F.scaled_dot_product_attention` calls another operator, which torch's context_parallel does not know (it
  then gives wrong shares). Inside `context_parallel`, the shim calls the operator above on DTensors instead.
* diffusers counts accelerators to choose a device and divides by that count. The shim reports one accelerator.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, FluxTransformer2DModel, ParallelConfig
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import set_rotate_method  # it has no public name
from torch.distributed.tensor.experimental._context_parallel._attention import _cp_options

from opensora_launch.model.attention import Attend
from opensora_launch.schema.config import MmditConfig


@contextmanager
def flash_on_cpu() -> Iterator[None]:
    """Make the flash operator work on CPU tensors inside this context, with the same outputs as on a GPU."""

    def flash(
        q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
        return_debug_mask: bool = False, *, scale: float | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, dropout_p, is_causal, scale=scale
        )
        nothing = torch.tensor(0)  # only a backward pass reads this; DTensor requires a scalar
        return out, lse, nothing, nothing, q.shape[2], k.shape[2], nothing, nothing, nothing

    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_flash_attention", flash, "CPU")
    try:
        yield
    finally:
        library._destroy()


def torch_mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


@contextmanager
def torch_context(mesh: DeviceMesh, rotate: str) -> Iterator[None]:
    """Enter torch's context_parallel without load balancing (for causal masks only). rotate: allgather or alltoall."""
    _cp_options.enable_load_balance = False
    set_rotate_method(rotate)
    unused = torch.zeros(1, 1, 2 * mesh.size(), 1)  # it requires at least one buffer to shard
    with context_parallel(mesh, buffers=[unused], buffer_seq_dims=[2]):
        yield


def torch_attend(mesh: DeviceMesh) -> Attend:
    """Return attention over all ranks' tokens, for use inside `torch_context`. q, k, v: B s N D."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shards = [DTensor.from_local(x.transpose(1, 2), mesh, [Shard(2)], run_check=False) for x in (q, k, v)]
        out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(*shards)[0].to_local()
        return out.transpose(1, 2)

    return attend


def diffusers_config(ring: int, ulysses: int) -> Any:
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ring_degree=ring, ulysses_degree=ulysses))
    mesh = init_device_mesh("cpu", (ring, ulysses), mesh_dim_names=("ring", "ulysses"))
    config.setup(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), mesh=mesh)
    return config


def diffusers_backend(ring: int) -> str:
    """Return diffusers' attention. Its ring needs a backend with log-sum-exp; Ulysses uses torch's faster choice."""
    return "_native_flash" if ring > 1 else "native"


def diffusers_attend(ring: int, ulysses: int) -> Attend:
    config, backend = diffusers_config(ring, ulysses), diffusers_backend(ring)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = dispatch_attention_fn(q, k, v, backend=backend, parallel_config=config)
        return out

    return attend


def flux(cfg: MmditConfig, degrees: tuple[int, int] | None) -> Any:
    """Build diffusers' Flux of the same sizes, whole or parallel over (ring, ulysses), with equal random weights."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=cfg.in_channels,
        num_layers=cfg.depth,
        num_single_layers=cfg.depth_single_blocks,
        attention_head_dim=cfg.hidden_size // cfg.num_heads,
        num_attention_heads=cfg.num_heads,
        joint_attention_dim=cfg.context_in_dim,
        pooled_projection_dim=cfg.vec_in_dim,
        guidance_embeds=True,
        axes_dims_rope=tuple(cfg.axes_dim),
    )
    model.requires_grad_(False).eval()
    if degrees:
        model.set_attention_backend(diffusers_backend(degrees[0]))
        config = ContextParallelConfig(ring_degree=degrees[0], ulysses_degree=degrees[1])
        with patch("torch.accelerator.device_count", return_value=1):
            model.enable_parallelism(config=config)
    return model


def flux_forward(model: Any, given: dict[str, Tensor]) -> Callable[[], Tensor]:
    """Return one forward on our model's inputs, whose result is whole on every rank."""

    def run() -> Tensor:
        out: Tensor = model(
            hidden_states=given["img"],
            encoder_hidden_states=given["txt"],
            pooled_projections=given["y_vec"],
            timestep=given["timesteps"],
            img_ids=given["img_ids"][0],
            txt_ids=given["txt_ids"][0],
            guidance=given["guidance"],
            return_dict=False,
        )[0]
        return out

    return run


def parameters(model: torch.nn.Module) -> int:
    return sum(math.prod(p.shape) for p in model.parameters())
