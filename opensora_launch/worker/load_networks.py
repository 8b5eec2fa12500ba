"""Load phase: the networks of a run on this rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from opensora_launch.engines.base import BlockEngine, Tick
from opensora_launch.engines.choice import choose_engine, chosen_attention
from opensora_launch.engines.placed_weights import blocks_of
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model.fp8_products import use_fp8_products
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.vae import Autoencoder, empty_vae, load_vae
from opensora_launch.model.weights import constant_weights, random_tensors, read_tensors, warn_of_constant
from opensora_launch.parallel.host_memory import free_caches
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.parallel.sharded_model import ShardedModel
from opensora_launch.parallel.streaming import StreamedBlocks
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import Init
from opensora_launch.worker.context import RankContext


@dataclass(frozen=True)
class Networks:
    mmdit: MMDiT
    vae: Autoencoder
    blocks: StreamedBlocks | None  # those of the mmdit, if not all of its weights stay on the device


def load_networks(
    source: WeightSource, engine: BlockEngine, placement: Placement, node: Axis, mesh: Mesh, tick: Tick
) -> Networks:
    """Load transformer and VAE on this rank. node: the ranks of this node that work on the same videos.

    `tick` gets the bytes of the transformer's weights as they are read. All ranks of the videos call this together.
    """
    transformer = engine.load_transformer(source, placement, node, mesh, tick)
    model = source.model
    if model.init is Init.random:
        tensors = random_tensors(empty_vae(model.vae), seed=model.init_seed, dtype=source.dtype, device=source.device)
    else:
        file = Path(model.folder) / model.vae_file
        tensors = read_tensors(file, device=source.device, dtype=source.dtype, prefix=model.vae_prefix)
        warn_of_constant(source.constant, source.path)
        warn_of_constant(constant_weights(tensors), file)
    return Networks(transformer.module, load_vae(model.vae, tensors), transformer.blocks)


def load_as_planned(ctx: RankContext) -> Networks:
    """Load the networks with the plan's engine and placement. The heartbeat shows how many bytes were read."""
    with ctx.recorder.span("load"):
        plan, engine, beat = ctx.plan, choose_engine(ctx.plan.engine), ctx.recorder.heartbeat
        source = WeightSource(plan.model, ctx.device, ctx.dtype)
        beat.loading(engine.bytes_to_read(source, plan.placement, ctx.node, ctx.mesh))
        networks = load_networks(source, engine, plan.placement, ctx.node, ctx.mesh, beat.loaded)
        if plan.numerics.fp8_products:
            use_fp8_products([*blocks_of(networks.mmdit).values()])
        free_caches(ctx.device)
        return networks


def shard_model(ctx: RankContext, networks: Networks, layouts: Mapping[int, Layout]) -> ShardedModel:
    """Return the transformer as it runs on the ranks. layouts: by number of rows in a step."""
    meshes = {rows: ctx.meshes[layout] for rows, layout in layouts.items()}
    sit_out = networks.blocks.pass_through if networks.blocks else None
    attention = chosen_attention(ctx.plan.engine, overlap=ctx.plan.overlap)
    at_once = ctx.plan.placement.rows_at_once
    forward = partial(networks.mmdit.forward, parts=ctx.parts)
    return ShardedModel(forward, ctx.kernel.call, meshes, sit_out, at_once, attention)
