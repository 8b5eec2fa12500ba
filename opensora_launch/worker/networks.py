"""The networks of a run on this rank."""

from dataclasses import dataclass
from pathlib import Path

import torch

from opensora_launch.engines.choice import engine_transformer
from opensora_launch.engines.native import Source, Tick
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.vae import load_vae
from opensora_launch.model.weights import random_tensors, read_tensors
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.parallel.placement import StreamedBlocks
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import Engine, Init


@dataclass(frozen=True)
class Networks:
    mmdit: MMDiT
    vae: CausalVae
    blocks: StreamedBlocks | None  # of the mmdit, where its weights do not stay on the device


def read_networks(source: Source, engine: Engine, placement: Placement, node: Axis, mesh: Mesh, tick: Tick) -> Networks:
    """Transformer and VAE on this rank. node: the ranks of this node that work on the same videos."""
    transformer = engine_transformer(source, engine, placement, node, mesh, tick)
    model = source.model
    with torch.device("meta"):
        empty = CausalVae(model.vae)
    if model.init is Init.random:
        tensors = random_tensors(empty, seed=model.init_seed, dtype=source.dtype, device=source.device)
    else:
        tensors = read_tensors(Path(model.folder) / model.vae_file, device=source.device, dtype=source.dtype)
    return Networks(transformer.module, load_vae(model.vae, tensors), transformer.blocks)
