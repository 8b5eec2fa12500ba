"""Prompts to embeddings: T5's last hidden states and CLIP's pooled output, from the public folders.

    n texts   L tokens of T5, padded   E channels of T5   V channels of CLIP

As the reference does it, padding is not masked: the transformer attends to all L tokens of T5, always. Texts are
encoded one at a time, so a text's embedding does not depend on what it is encoded with.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from accelerate import init_empty_weights
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from opensora_launch.errors import UserError
from opensora_launch.model.files import missing, weight_files
from opensora_launch.model.load import fill
from opensora_launch.model.weights import read_pickle, read_tensors
from opensora_launch.schema.config import ModelConfig

CLIP_PREFIX = "text_model."  # of the public names; transformers 5 leaves it out of the module's
TIED = ("shared.weight", "encoder.embed_tokens.weight")  # T5's token embedding; files have one name or both


@dataclass(frozen=True)
class TextRows:
    """Embeddings of n texts; `cut` counts each text's tokens that did not fit, of T5 and of CLIP."""

    t5: Float[Tensor, "n L E"]
    clip: Float[Tensor, "n V"]
    cut: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Encoder:
    """A network, its tokenizer, and the number of tokens that every text is padded or cut to."""

    network: nn.Module
    tokenizer: Any
    max_length: int

    def run(self, text: str) -> tuple[Any, int]:
        """The network's outputs of one text, and how many of its tokens were cut off."""
        made = self.tokenizer(
            text, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        whole = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        ids = made["input_ids"].to(next(self.network.parameters()).device)
        return self.network(input_ids=ids, attention_mask=None), max(0, len(whole) - self.max_length)


@dataclass(frozen=True)
class TextEncoders:
    t5: Encoder
    clip: Encoder

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextRows:
        """On the encoders' device, in their dtype."""
        assert texts, "there is always a text, if an empty one"
        rows = [(self.t5.run(text), self.clip.run(text)) for text in texts]
        return TextRows(
            t5=torch.cat([t5.last_hidden_state for (t5, _), _ in rows]),
            clip=torch.cat([clip.pooler_output for _, (clip, _) in rows]),
            cut=tuple((cut_t5, cut_clip) for (_, cut_t5), (_, cut_clip) in rows),
        )


def load_text_encoders(model: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> TextEncoders:
    """Both encoders from their folders. UserError if a file is missing or is not of such a model."""
    t5, clip = Path(model.folder) / model.t5_folder, Path(model.folder) / model.clip_folder
    if absent := [missing(path / "config.json", model) for path in (t5, clip) if not (path / "config.json").is_file()]:
        raise UserError("the text encoders cannot be loaded", absent)
    # fp16 overflows in T5's largest activations; transformers too keeps the layers that make them in fp32.
    wide = (".wo.weight",) if dtype == torch.float16 else ()
    networks = []
    for folder, network_class, config_class in ((t5, T5EncoderModel, T5Config), (clip, CLIPTextModel, CLIPTextConfig)):
        config = config_class.from_pretrained(folder, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            network = network_class(config)
        tensors = encoder_tensors(folder, list(network.state_dict()), device=device, dtype=dtype, wide=wide)
        fill(network, tensors, f"the weights in {folder}")
        networks.append(network.to(device))  # the buffers; the weights are there
    lengths = model.text.t5_max_length, model.text.clip_max_length
    tokenizers = [AutoTokenizer.from_pretrained(folder, local_files_only=True) for folder in (t5, clip)]
    return TextEncoders(*(Encoder(*parts) for parts in zip(networks, tokenizers, lengths, strict=True)))


def encoder_tensors(
    folder: Path, names: Sequence[str], *, device: torch.device, dtype: torch.dtype, wide: tuple[str, ...]
) -> dict[str, Tensor]:
    """The tensors `names` of a network from a folder's files, which hold others too (a decoder, a vision tower).

    Those whose names end with one of `wide` are fp32. Names that no file has are left out: `fill` lists them.
    """
    found: dict[str, Tensor] = {}
    for of_wide in (False, True):
        wanted = [p for n in names if n.endswith(wide) == of_wide for p in public_names(n)]
        for file in weight_files(folder):
            found |= read_weights(file, device, torch.float32 if of_wide else dtype, wanted)
    present = {name: [p for p in public_names(name) if p in found] for name in names}
    return {name: found[public[0]] for name, public in present.items() if public}


def read_weights(file: Path, device: torch.device, dtype: torch.dtype, wanted: Iterable[str]) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return read_tensors(file, device=device, dtype=dtype, wanted=wanted)
    return read_pickle(file, device=device, dtype=dtype, wanted=wanted)


def public_names(name: str) -> tuple[str, ...]:
    """What a file may call a network's tensor."""
    return TIED if name in TIED else (name, CLIP_PREFIX + name)


def random_embeddings(texts: Sequence[str], *, t5_shape: tuple[int, int], clip_channels: int) -> TextRows:
    """Normal numbers for tests and speed measurements, seeded by each text: fp32, on the CPU.

    t5_shape: tokens, channels.
    """
    t5, clip = [], []
    for text in texts:
        generator = torch.Generator().manual_seed(crc32(text.encode()))
        t5.append(torch.randn(t5_shape, generator=generator))
        clip.append(torch.randn(clip_channels, generator=generator))
    return TextRows(torch.stack(t5), torch.stack(clip), tuple((0, 0) for _ in texts))
