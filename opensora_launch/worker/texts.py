"""Embeddings of a run's texts: encoded once, in little memory, remembered on disk, sent to every rank."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from opensora_launch.engines.text_team import CPU
from opensora_launch.model.files import weight_files
from opensora_launch.model.text import TextRows, random_embeddings
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.tiles import broadcast
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.rundir import aside
from opensora_launch.schema.config import Init, ModelConfig

log = logging.getLogger("opensora_launch.worker")


@dataclass(frozen=True)
class Embedding:
    """One text: T5's token states and CLIP's pooled vector; `cut` counts T5's tokens that did not fit."""

    t5: Float[Tensor, "T context"]
    clip: Float[Tensor, "vec"]
    cut: int = 0

    def to(self, device: torch.device) -> "Embedding":
        return Embedding(self.t5.to(device), self.clip.to(device), self.cut)


@dataclass(frozen=True)
class TextCache:
    """Embeddings on disk, a file a text. Another encoder, precision or device has other files."""

    folder: Path
    encoder: str  # what decides the result besides the text

    @classmethod
    def of(cls, folder: Path, model: ModelConfig, device_name: str, dtype: torch.dtype) -> "TextCache":
        files = [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns)
            for part in (model.t5_folder, model.clip_folder)
            for file in weight_files(Path(model.folder) / part)
        ]
        lengths = (model.text.t5_max_length, model.text.clip_max_length)
        versions = [version(package) for package in ("torch", "transformers")]
        place = os.path.abspath(model.folder)
        return cls(folder, json.dumps([place, files, lengths, versions, device_name, str(dtype)]))

    def read(self, text: str) -> Embedding | None:
        """None if it is not there, or cannot be read."""
        try:
            tensors = load_file(self._file(text))
            return Embedding(tensors["t5"], tensors["clip"], int(tensors["cut"]))
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, text: str, embedding: Embedding) -> None:
        """A full or read-only disk costs the next run some time, not this one its video."""
        path = self._file(text)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tensors = {"t5": embedding.t5, "clip": embedding.clip, "cut": torch.tensor(embedding.cut)}
            with aside(path) as beside:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
        except (OSError, SafetensorError) as error:
            log.warning("the text embeddings are not kept in %s: %s", self.folder, error)

    def _file(self, text: str) -> Path:
        key = sha256("\n".join([self.encoder, text]).encode()).hexdigest()
        return self.folder / f"{key}.safetensors"


def distinct_texts(videos: Sequence[VideoRequest]) -> list[str]:
    """Every text that is encoded, once, in the order of first use."""
    return list(dict.fromkeys(text for video in videos for text in (video.text, video.negative)))


def encode_texts(
    model: ModelConfig,
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], TextRows],
    dtype: torch.dtype,
    cache: TextCache | None,
) -> list[Embedding]:
    """Each text's embedding on the CPU, in `dtype`. `encode` is called once at most, with those that are not known."""
    if model.init is Init.random:
        shape = (model.text.t5_max_length, model.mmdit.context_in_dim)
        rows = random_embeddings(texts, t5_shape=shape, clip_channels=model.mmdit.vec_in_dim)
        return [Embedding(t5.to(dtype), clip.to(dtype)) for t5, clip in zip(rows.t5, rows.clip, strict=True)]
    known = {text: cache.read(text) if cache else None for text in texts}
    if new := [text for text in texts if known[text] is None]:
        rows = encode(new)
        for text, t5, clip, (cut, _) in zip(new, rows.t5, rows.clip, rows.cut, strict=True):
            known[text] = Embedding(t5.to(CPU, dtype), clip.to(CPU, dtype), cut)
    found = [embedding for text in texts if (embedding := known[text]) is not None]
    if cache:
        for text, embedding in zip(texts, found, strict=True):
            if text in new:
                cache.write(text, embedding)
    for text, embedding in zip(texts, found, strict=True):
        if embedding.cut:
            log.warning("the last %d tokens of this prompt do not fit and are not seen: %s", embedding.cut, text)
    return found


def share_embeddings(axis: Axis, texts: Sequence[str], encoded: Sequence[Embedding] | None) -> Mapping[str, Embedding]:
    """Each text's embedding, on the CPU of every rank of the axis; its first rank has encoded them."""
    t5 = broadcast(axis, torch.stack([e.t5 for e in encoded]) if encoded else None, CPU)
    clip = broadcast(axis, torch.stack([e.clip for e in encoded]) if encoded else None, CPU)
    cut = broadcast(axis, torch.tensor([e.cut for e in encoded]) if encoded else None, CPU)
    return {text: Embedding(t5[i], clip[i], int(cut[i])) for i, text in enumerate(texts)}
