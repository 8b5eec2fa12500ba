"""Which engine runs the transformer: who cuts its weights, who moves its tokens, who encodes the texts.

ColossalAI is imported inside functions, so only where it was chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from opensora_launch.config import Engine, ModelConfig
from opensora_launch.errors import UserError
from opensora_launch.model.files import files_of
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.text import TextEncoders, TextRows, load_text_encoders
from opensora_launch.parallel.attention import Kernel, sharded_attention
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.plan.placement import Placement
from opensora_launch.worker.cut import cut_transformer, reader
from opensora_launch.worker.texts import CPU, fitting_encoders
from opensora_launch.worker.transformer import Source, Tick, Transformer, load_transformer

Attention = Callable[[Mesh, int, Kernel], Callable[[Tensor, Tensor, Tensor], Tensor]]
Target = tuple[torch.device, torch.dtype]


def attention_of(engine: Engine) -> Attention:
    """By mesh, tokens of the whole sequence, and kernel: the `attend` of our share."""
    if engine is Engine.native:
        return sharded_attention
    _must_be_there(engine)
    from opensora_launch.colossal.attention import colossal_attention

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
    _must_be_there(engine)
    from opensora_launch.colossal.checkpoint import load_checkpoint
    from opensora_launch.colossal.transformer import cut_by_policy, fill

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


@dataclass(frozen=True)
class Team:
    """The ranks that encode the texts together. The first knows which; the others help."""

    axis: Axis
    load: Callable[[], TextEncoders]

    def encode(self, texts: Sequence[str]) -> TextRows:
        """Called by the first, once at most."""
        self._tell(list(texts))
        return self.load().encode(texts)

    def dismiss(self) -> None:
        """Called by the first when no more texts come."""
        self._tell(None)

    def help(self) -> None:
        """Called by the others; returns when they are dismissed."""
        while (texts := self._tell(None)) is not None:
            self.load().encode(texts)

    def _tell(self, texts: list[str] | None) -> list[str] | None:
        told = [texts]
        if self.axis.size > 1:
            with self.axis.exchange(0):
                dist.broadcast_object_list(told, self.axis.ranks[0], group=self.axis.group)
        return told[0]


def text_team(engine: Engine, world: Axis, mesh: Mesh, model: ModelConfig, target: Target) -> Team:
    """The run's first rank alone, or with ColossalAI all of its tp axis, each with a part of T5."""
    device, dtype = target
    if engine is Engine.native:
        first = replace(world, ranks=world.ranks[:1], index=0)
        return Team(first, lambda: fitting_encoders(model, first, device, dtype))

    def load() -> TextEncoders:
        _must_be_there(engine)
        from opensora_launch.colossal.text import cut_t5

        return cut_t5(load_text_encoders(model, device=CPU, dtype=dtype), mesh.tp, device)

    first_axis = replace(mesh.tp, ranks=tuple(range(mesh.tp.size)), index=world.index)
    return Team(first_axis, load)


def _must_be_there(engine: Engine) -> None:
    from opensora_launch.colossal.require import engine_problems

    if problems := engine_problems(engine):
        raise UserError(problems[0])
