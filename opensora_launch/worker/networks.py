"""The networks of a run on this rank, and the embeddings of its texts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opensora_launch.config import Init, ModelConfig
from opensora_launch.model import load_mmdit
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.text import load_text_encoders, random_embeddings
from opensora_launch.model.vae import load_vae
from opensora_launch.model.weights import random_tensors, read_tensors
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.tiles import broadcast
from opensora_launch.plan.plan import VideoRequest

log = logging.getLogger("opensora_launch.worker")


@dataclass(frozen=True)
class Networks:
    mmdit: MMDiT
    vae: CausalVae


@dataclass(frozen=True)
class Embedding:
    """One text: T5's token states and CLIP's pooled vector."""

    t5: Float[Tensor, "T context"]
    clip: Float[Tensor, "vec"]

    def to(self, device: torch.device) -> "Embedding":
        return Embedding(self.t5.to(device), self.clip.to(device))


def read_mmdit(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> MMDiT:
    config = asdict(model.mmdit)
    with torch.device("meta"):
        empty = MMDiT(model.mmdit)
    return load_mmdit(config, _tensors(empty, model, model.mmdit_file, device, dtype))


def read_vae(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> CausalVae:
    with torch.device("meta"):
        empty = CausalVae(model.vae)
    return load_vae(model.vae, _tensors(empty, model, model.vae_file, device, dtype))


def _tensors(
    empty: nn.Module, model: ModelConfig, file: str, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    if model.init is Init.random:
        return random_tensors(empty, seed=model.init_seed, dtype=dtype, device=device)
    return read_tensors(Path(model.folder) / file, device=device, dtype=dtype)


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
