"""Write a checkpoint of any size with random weights, and make the system forget a file that it has read."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.shapes import mmdit_shapes
from opensora_launch.schema.config import Init, MmditConfig, ModelConfig


def checkpoint_of(mmdit: MmditConfig, folder: Path, gigabytes: float) -> ModelConfig:
    """Return a config of this network with as many single blocks, one at least, as give this size in bf16."""
    one = replace(mmdit, depth_single_blocks=1)
    sizes = {k: torch.Size(v).numel() * 2 for k, v in mmdit_shapes(one).items()}
    block = sum(size for name, size in sizes.items() if name.startswith("single_blocks."))
    more = max(0, round((gigabytes * 1e9 - sum(sizes.values())) / block))
    return ModelConfig(init=Init.checkpoint, folder=str(folder), mmdit=replace(one, depth_single_blocks=1 + more))


def write_checkpoint(model: ModelConfig) -> Path:
    """Write the transformer's weights in bf16, and return the file."""
    with torch.device("meta"):
        state = MMDiT(model.mmdit).state_dict()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 20, generator=generator).bfloat16()
    tensors = {
        k: noise.repeat(-(-v.numel() // noise.numel()))[: v.numel()].view(v.shape).clone() for k, v in state.items()
    }
    file = Path(model.folder) / model.mmdit_file
    save_file(tensors, file)
    return file


def drop_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
