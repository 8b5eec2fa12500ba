"""Print the peaks of live bytes of real forwards on one of many ranks as JSON.

It runs in a separate process, because shape checks keep tensors alive. The only argument is JSON: `forward`, cases of
rows, dtype, layout, mlp_ratio and at_once; `placed`, cases of placement and ranks.
"""

import json
import sys
import weakref
from contextlib import nullcontext
from datetime import timedelta
from typing import Any
from unittest import mock

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Conv3d
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from opensora_launch.engines.native import cut_transformer
from opensora_launch.engines.placed_weights import place_transformer
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model import block_parts
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.parallel.mesh import Axis, Groups, build_meshes
from opensora_launch.parallel.sequence_attention import sharded_attention
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.config import Init, MmditConfig, ModelConfig, Offload

TOKENS, TEXT = 2048, 8  # sums over all ranks; the first rank holds the whole text


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators return, until they are freed. Earlier storages are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.live: int = 0
        self.peak: int = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in known:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def kernel(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return tensors like those of a fused kernel, which allocates nothing else."""
    return torch.empty_like(q), torch.empty(q.shape[0], q.shape[2], q.shape[1], device=q.device)


def forward_peak(case: dict[str, Any]) -> int:
    cfg = MmditConfig(
        hidden_size=192, num_heads=24, depth=1, depth_single_blocks=1, axes_dim=[4, 2, 2], mlp_ratio=case["mlp_ratio"]
    )
    layout, dtype, rows = Layout(**case["layout"]), getattr(torch, case["dtype"]), case["rows"]
    vars(block_parts)["TOKENS_AT_ONCE"] = case["at_once"]
    mesh = build_meshes([layout], 0, Groups(timedelta(seconds=60)), lambda *_: nullcontext())[layout]
    own = -(-TOKENS // layout.sequence)
    text, video = min(TEXT, own), max(0, own - TEXT)
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in MMDiT(cfg).state_dict().items()}
    cpu = torch.device("cpu")
    model = cut_transformer(cfg, lambda name: torch.zeros(shapes[name]), mesh.tp, cpu, dtype, lambda nbytes: None)
    inputs = {
        "img": torch.zeros(rows, video, cfg.in_channels),
        "img_ids": torch.zeros(1, video, 3),
        "txt": torch.zeros(rows, text, cfg.context_in_dim, dtype=dtype),
        "txt_ids": torch.zeros(1, text, 3),
        "timesteps": torch.zeros(rows),
        "y_vec": torch.zeros(rows, cfg.vec_in_dim, dtype=dtype),
        "cond": torch.zeros(rows, video, cfg.in_channels + 4, dtype=dtype),
    }
    with torch.no_grad(), LiveBytes() as live:
        model(**inputs, attend=sharded_attention(mesh, TEXT, TOKENS, kernel, overlap=case["overlap"]))
    return int(live.peak)


def placed_peak(case: dict[str, Any]) -> int:
    """Measure a forward on one of `ranks` ranks: the device's bytes of resident weights, buffers and peak activations.

    Weights that wait in host memory are not counted.
    """
    cfg = MmditConfig(hidden_size=192, num_heads=24, depth=2, depth_single_blocks=8, axes_dim=[4, 2, 2])
    placement, ranks, rows = msgspec.convert(case["placement"], Placement), case["ranks"], 1
    vars(block_parts)["TOKENS_AT_ONCE"] = 512
    axis = Axis("weights", tuple(range(ranks)), 0, dist.new_group(list(range(ranks))), lambda *_: nullcontext())
    source = WeightSource(ModelConfig(init=Init.random, mmdit=cfg), torch.device("cpu"), torch.bfloat16)
    loaded = place_transformer(source, placement, axis, axis, lambda nbytes: None)
    held = sum(p.numel() * p.element_size() for p in loaded.module.parameters())
    for x in loaded.blocks.placed if loaded.blocks else ():
        held += x.share.numel() if x.resident or placement.offload is Offload.none else 0
    inputs = {
        "img": torch.zeros(rows, TOKENS - TEXT, cfg.in_channels),
        "img_ids": torch.zeros(rows, TOKENS - TEXT, 3),
        "txt": torch.zeros(rows, TEXT, cfg.context_in_dim, dtype=torch.bfloat16),
        "txt_ids": torch.zeros(rows, TEXT, 3),
        "timesteps": torch.zeros(rows),
        "y_vec": torch.zeros(rows, cfg.vec_in_dim, dtype=torch.bfloat16),
        "cond": torch.zeros(rows, TOKENS - TEXT, cfg.in_channels + 4, dtype=torch.bfloat16),
    }
    with torch.no_grad(), LiveBytes() as live:
        loaded.module(**inputs, attend=lambda q, k, v: kernel(q, k, v)[0])
    return held + int(live.peak)


def decode_peak(side: int, frames: int) -> int:
    """Measure the decoding of a tile as on CUDA, where the channels of weights and videos lie last in memory."""
    last = torch.channels_last_3d

    def convolved(self: Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return an output that lies as cuDNN leaves it. Tensors without data always have plain outputs."""
        sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)]
        shape = (x.shape[0], self.out_channels, *sizes)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=last)

    with torch.device("meta"):
        vae, latent = CausalVae(VaeConfig()).bfloat16(), torch.empty(1, 16, frames, side, side, dtype=torch.bfloat16)
    vae.to(memory_format=last)  # type: ignore[call-overload]
    with torch.no_grad(), LiveBytes() as live, mock.patch.object(Conv3d, "_conv_forward", convolved):
        vae.decode(latent)
    return int(live.peak)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = json.loads(sys.argv[1])
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    forward = [forward_peak(case) for case in cases["forward"]]
    placed = [placed_peak(case) for case in cases["placed"]]
    print(json.dumps({"forward": forward, "placed": placed, "decode": decode_peak(32, 33)}))
