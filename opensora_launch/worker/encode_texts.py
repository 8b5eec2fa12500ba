"""Text phase: each text of a run is encoded once, remembered on disk, and sent to every rank."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from opensora_launch.engines.choice import choose_engine
from opensora_launch.model.text_encoders import Embedding, random_embedding
from opensora_launch.model.weight_files import weight_files
from opensora_launch.parallel.collectives import broadcast
from opensora_launch.parallel.host_memory import free_caches
from opensora_launch.parallel.mesh import Axis
from opensora_launch.plan.plan import Plan
from opensora_launch.rundir import aside
from opensora_launch.schema.config import Init, ModelConfig
from opensora_launch.worker.context import RankContext
from opensora_launch.worker.rank_facts import device_name

CPU = torch.device("cpu")

log = logging.getLogger("opensora_launch.worker")


@dataclass(frozen=True)
class TextCache:
    """Embeddings on disk, one file per text. Another encoder, precision or device has other files."""

    folder: Path
    encoder: str  # everything but the text that decides the result

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
        """Return the embedding of a text; None if it is not on disk, or cannot be read."""
        try:
            tensors = load_file(self._file(text))
            return Embedding(tensors["t5"], tensors["clip"], int(tensors["cut"]))
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, text: str, embedding: Embedding) -> None:
        """Store the embedding of a text. A full or read-only disk only costs the next run some time."""
        path = self._file(text)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tensors = {"t5": embedding.t5, "clip": embedding.clip, "cut": torch.tensor(embedding.cut)}
            with aside(path) as beside:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
        except (OSError, SafetensorError) as error:
            log.warning("text embeddings cannot be stored in %s: %s", self.folder, error)

    def _file(self, text: str) -> Path:
        key = sha256("\n".join([self.encoder, text]).encode()).hexdigest()
        return self.folder / f"{key}.safetensors"


def texts_of(plan: Plan) -> list[str]:
    """Return every text of a plan's images and videos, once, in the order of first use."""
    videos = [*(plan.images.videos if plan.images else ()), *plan.videos]
    return list(dict.fromkeys(text for video in videos for text in (video.text, video.negative)))


def encode_texts(
    model: ModelConfig,
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], Sequence[Embedding]],
    dtype: torch.dtype,
    cache: TextCache | None,
) -> list[Embedding]:
    """Return the embedding of each text on the CPU, in `dtype`. Calls `encode` at most once, with the unknown texts."""
    if model.init is Init.random:
        shape = (model.text.t5_max_length, model.mmdit.context_in_dim)
        channels = model.mmdit.vec_in_dim
        return [random_embedding(text, t5_shape=shape, clip_channels=channels).to(CPU, dtype) for text in texts]
    known = {text: cache.read(text) if cache else None for text in texts}
    if new := [text for text in texts if known[text] is None]:
        known |= {text: made.to(CPU, dtype) for text, made in zip(new, encode(new), strict=True)}
    found = [embedding for text in texts if (embedding := known[text]) is not None]
    for text, embedding in zip(texts, found, strict=True):
        if cache and text in new:
            cache.write(text, embedding)
        if embedding.cut:
            log.warning("%d tokens at the end of this prompt do not fit and are ignored: %s", embedding.cut, text)
    return found


def encode_on_team(ctx: RankContext) -> list[Embedding] | None:
    """Encode all texts of the plan on the first rank of the engine's text team; None on all other ranks."""
    plan = ctx.plan
    team = choose_engine(plan.engine).text_team(ctx.world, ctx.mesh, plan.model, ctx.device, ctx.dtype)
    if ctx.world.index not in team.axis.ranks:
        return None
    with ctx.recorder.span("text"):
        if team.axis.index > 0:
            team.help()
            free_caches(ctx.device)
            return None
        cache = None
        if plan.text_cache and plan.model.init is Init.checkpoint:
            cache = TextCache.of(Path(plan.text_cache), plan.model, device_name(ctx.device), ctx.dtype)
        encoded = encode_texts(plan.model, texts_of(plan), team.encode, ctx.dtype, cache)
        team.dismiss()
        free_caches(ctx.device)  # the encoders are gone, and the transformer comes next
        return encoded


def share_embeddings(ctx: RankContext, encoded: Sequence[Embedding] | None) -> Mapping[str, Embedding]:
    """Return the embedding of each text of the plan, on the CPU of every rank; the first rank has encoded them."""
    with ctx.recorder.span("text"):
        return send_embeddings(ctx.world, texts_of(ctx.plan), encoded)


def send_embeddings(axis: Axis, texts: Sequence[str], encoded: Sequence[Embedding] | None) -> Mapping[str, Embedding]:
    """Send the embeddings of the texts from the first rank of the axis to the CPUs of all its ranks."""
    t5 = broadcast(axis, torch.stack([e.t5 for e in encoded]) if encoded else None, CPU)
    clip = broadcast(axis, torch.stack([e.clip for e in encoded]) if encoded else None, CPU)
    cut = broadcast(axis, torch.tensor([e.cut for e in encoded]) if encoded else None, CPU)
    return {text: Embedding(t5[i], clip[i], int(cut[i])) for i, text in enumerate(texts)}
