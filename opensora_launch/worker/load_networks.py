"""Load phase: the networks of a run on this rank."""

from dataclasses import dataclass
from pathlib import Path

import torch

from opensora_launch.engines.base import BlockEngine, Tick
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.vae import load_vae
from opensora_launch.model.weights import random_tensors, read_tensors
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.parallel.streaming import StreamedBlocks
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import Init


@dataclass(frozen=True)
class Networks:
    mmdit: MMDiT
    vae: CausalVae
    blocks: StreamedBlocks | None  # those of the mmdit, if not all of its weights stay on the device


def load_networks(
    source: WeightSource, engine: BlockEngine, placement: Placement, node: Axis, mesh: Mesh, tick: Tick
) -> Networks:
    """Load transformer and VAE on this rank. node: the ranks of this node that work on the same videos.

    `tick` gets the bytes of the transformer's weights as they are read. All ranks of the videos call this together.
    """
    transformer = engine.load_transformer(source, placement, node, mesh, tick)
    model = source.model
    with torch.device("meta"):
        empty = CausalVae(model.vae)
    if model.init is Init.random:
        tensors = random_tensors(empty, seed=model.init_seed, dtype=source.dtype, device=source.device)
    else:
        tensors = read_tensors(Path(model.folder) / model.vae_file, device=source.device, dtype=source.dtype)
    return Networks(transformer.module, load_vae(model.vae, tensors), transformer.blocks)
