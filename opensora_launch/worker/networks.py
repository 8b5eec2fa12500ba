"""The networks of a run on this rank, and the embeddings of its texts."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from opensora_launch.config import Init, ModelConfig, PlacementConfig
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.text import load_text_encoders, random_embeddings
from opensora_launch.model.vae import load_vae
from opensora_launch.model.weights import random_tensors, read_tensors
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.placement import StreamedBlocks
from opensora_launch.parallel.tiles import broadcast
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.worker.transformer import Source, load_transformer

log = logging.getLogger("opensora_launch.worker")


@dataclass(frozen=True)
class Networks:
    mmdit: MMDiT
    vae: CausalVae
    blocks: StreamedBlocks | None  # of the mmdit, where its weights do not stay on the device


@dataclass(frozen=True)
class Embedding:
    """One text: T5's token states and CLIP's pooled vector."""

    t5: Float[Tensor, "T context"]
    clip: Float[Tensor, "vec"]

    def to(self, device: torch.device) -> "Embedding":
        return Embedding(self.t5.to(device), self.clip.to(device))


def read_networks(
    source: Source, placement: PlacementConfig, axes: tuple[Axis, Axis], tick: Callable[[], None]
) -> Networks:
    """Transformer and VAE on this rank. axes: our ranks of this node, and on all nodes."""
    transformer = load_transformer(source, placement, axes, tick)
    model = source.model
    with torch.device("meta"):
        empty = CausalVae(model.vae)
    if model.init is Init.random:
        tensors = random_tensors(empty, seed=model.init_seed, dtype=source.dtype, device=source.device)
    else:
        tensors = read_tensors(Path(model.folder) / model.vae_file, device=source.device, dtype=source.dtype)
    return Networks(transformer.module, load_vae(model.vae, tensors), transformer.blocks)


def distinct_texts(videos: Sequence[VideoRequest]) -> list[str]:
    """Every text that is encoded, once, in the order of first use."""
    return list(dict.fromkeys(text for video in videos for text in (video.text, video.negative)))


def encode_texts(
    model: ModelConfig, texts: Sequence[str], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(n T context, n vec) on the CPU; the encoders are gone when this returns."""
    if model.init is Init.random:
        shape = (model.text.t5_max_length, model.mmdit.context_in_dim)
        rows = random_embeddings(texts, t5_shape=shape, clip_channels=model.mmdit.vec_in_dim)
    else:
        rows = load_text_encoders(model, device=device, dtype=dtype).encode(texts)
    for text, (cut_t5, _) in zip(texts, rows.cut, strict=True):
        if cut_t5:
            log.warning("the last %d tokens of this prompt do not fit and are not seen: %s", cut_t5, text)
    return rows.t5.to("cpu", dtype), rows.clip.to("cpu", dtype)


def share_embeddings(
    axis: Axis, texts: Sequence[str], encoded: tuple[Tensor, Tensor] | None
) -> Mapping[str, Embedding]:
    """Each text's embedding, on the CPU of every rank of the axis; its first rank has encoded them."""
    cpu = torch.device("cpu")
    t5 = broadcast(axis, encoded[0] if encoded else None, cpu)
    clip = broadcast(axis, encoded[1] if encoded else None, cpu)
    return {text: Embedding(t5[i], clip[i]) for i, text in enumerate(texts)}
