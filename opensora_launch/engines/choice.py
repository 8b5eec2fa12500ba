"""Which engine runs the transformer: who cuts its weights, who moves its tokens, who encodes the texts.

ColossalAI is imported inside functions, so only where it was chosen.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from opensora_launch.doctor.engine_packages import must_be_installed
from opensora_launch.engines.native import Source, Tick, Transformer, load_transformer
from opensora_launch.engines.tensor_parallel import cut_transformer, reader
from opensora_launch.model.files import files_of
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.parallel.attention import Kernel, sharded_attention
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import Engine

Attention = Callable[[Mesh, int, Kernel], Callable[[Tensor, Tensor, Tensor], Tensor]]


def attention_of(engine: Engine) -> Attention:
    """By mesh, tokens of the whole sequence, and kernel: the `attend` of our share."""
    if engine is Engine.native:
        return sharded_attention
    must_be_installed(engine)
    from opensora_launch.engines.colossal.attention import colossal_attention

    return colossal_attention


def cuts_weights(engine: Engine, mesh: Mesh) -> bool:
    """Whether weights are the tp axis' concern; else they are placed."""
    return engine is Engine.colossalai or mesh.tp.size > 1


def engine_transformer(
    source: Source, engine: Engine, placement: Placement, node: Axis, mesh: Mesh, tick: Tick
) -> Transformer:
    """The transformer on this rank. node: the ranks of this node that work on the same videos.

    `tick` gets the bytes that were read. All ranks of the video call this together.
    """
    if not cuts_weights(engine, mesh):
        return load_transformer(source, placement, (node, mesh.video), tick)
    source.check()
    target = (source.device, source.dtype)
    if engine is Engine.native:
        return Transformer(cut_transformer(source.model.mmdit, reader(source), mesh.tp, target, tick), None)
    must_be_installed(engine)
    from opensora_launch.engines.colossal.checkpoint import load_checkpoint
    from opensora_launch.engines.colossal.transformer import cut_by_policy, fill

    wrapped = cut_by_policy(source.model.mmdit, mesh, target)
    module: MMDiT = wrapped.unwrap()
    if index := _index(source):
        load_checkpoint(wrapped, index, mesh)
        tick(source.nbytes // mesh.tp.size)
    else:
        fill(module, reader(source), lambda nbytes: tick(nbytes // mesh.tp.size))
    return Transformer(module, None)


def _index(source: Source) -> Path | None:
    """That of a checkpoint of several files, which ColossalAI reads by itself."""
    path = source.path
    if not source.stored or source.prefix or files_of(path) == [path]:
        return None
    return path if path.suffix == ".json" else path.with_name(f"{path.name}.index.json")
