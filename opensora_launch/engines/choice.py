"""Choose the engine of a run."""

from functools import partial

from opensora_launch.doctor.engine_packages import must_be_installed
from opensora_launch.engines.base import BlockEngine
from opensora_launch.engines.native import NativeEngine
from opensora_launch.parallel.sequence_attention import SequenceAttention, sharded_attention
from opensora_launch.schema.config import Engine


def choose_engine(kind: Engine) -> BlockEngine:
    """Return the engine of that kind. Raises UserError if its packages are not installed."""
    if kind is Engine.native:
        return NativeEngine()
    must_be_installed(kind)
    from opensora_launch.engines.colossal.engine import ColossalEngine

    return ColossalEngine()


def chosen_attention(kind: Engine, *, overlap: bool) -> SequenceAttention:
    """Return how the engine attends over spread tokens. overlap: Ulysses exchanges meanwhile, in the native engine."""
    return partial(sharded_attention, overlap=True) if overlap else choose_engine(kind).attention
