"""Turn prompts into embeddings: T5's last hidden states and CLIP's pooled output, with weights from the public folders.

    L tokens of T5, padded   E channels of T5   V channels of CLIP

As in the reference, padding is not masked: the transformer always attends to all L tokens of T5. Texts are encoded one
at a time, so the embedding of a text does not depend on the other texts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from opensora_launch.errors import UserError
from opensora_launch.model.load import fill
from opensora_launch.model.weight_files import missing, weight_files
from opensora_launch.model.weights import constant_weights, read_pickle, read_tensors, warn_of_constant
from opensora_launch.schema.config import ModelConfig

CLIP_PREFIX = "text_model."  # of the public names; the module of transformers 5 has names without it
TIED = ("shared.weight", "encoder.embed_tokens.weight")  # T5's token embedding; files have one name or both


@dataclass(frozen=True)
class Embedding:
    """T5's token states and CLIP's pooled vector of one text. `cut` counts the tokens that did not fit in T5."""

    t5: Float[Tensor, "L E"]
    clip: Float[Tensor, "V"]
    cut: int = 0

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "Embedding":
        return Embedding(self.t5.to(device, dtype), self.clip.to(device, dtype), self.cut)


@dataclass(frozen=True)
class TextEncoder:
    """A network, its tokenizer, and the number of tokens to which every text is padded or cut."""

    network: nn.Module
    tokenizer: Any
    max_length: int

    def run(self, text: str) -> Any:
        """Return the network's outputs for one text."""
        made = self.tokenizer(
            text, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        ids = made["input_ids"].to(next(self.network.parameters()).device)
        return self.network(input_ids=ids, attention_mask=None)

    def cut(self, text: str) -> int:
        """Return how many tokens of a text are cut off."""
        return max(0, len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"]) - self.max_length)


@dataclass(frozen=True)
class TextEncoders:
    t5: TextEncoder
    clip: TextEncoder

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> list[Embedding]:
        """Encode the texts on the device of the encoders, in their dtype."""
        return [
            Embedding(self.t5.run(text).last_hidden_state[0], self.clip.run(text).pooler_output[0], self.t5.cut(text))
            for text in texts
        ]


def load_text_encoders(model: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> TextEncoders:
    """Load both encoders from their folders. Raises UserError if a file is missing or of another kind."""
    # This takes seconds, and a rank that has no text to encode does without.
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    t5, clip = Path(model.folder) / model.t5_folder, Path(model.folder) / model.clip_folder
    if absent := [missing(path / "config.json", model) for path in (t5, clip) if not (path / "config.json").is_file()]:
        raise UserError("the text encoders cannot be loaded", absent)
    # T5's largest activations overflow in fp16; like transformers, keep the layers that make them in fp32.
    wide = (".wo.weight",) if dtype == torch.float16 else ()
    networks = []
    for folder, network_class, config_class in ((t5, T5EncoderModel, T5Config), (clip, CLIPTextModel, CLIPTextConfig)):
        config = config_class.from_pretrained(folder, local_files_only=True)
        with parameters_on_meta():
            network = network_class(config)
        tensors = encoder_tensors(folder, list(network.state_dict()), device=device, dtype=dtype, wide=wide)
        fill(network, tensors, f"the weights in {folder}")
        networks.append(network.to(device))  # moves the buffers; the weights are there already
    lengths = model.text.t5_max_length, model.text.clip_max_length
    tokenizers = [AutoTokenizer.from_pretrained(folder, local_files_only=True) for folder in (t5, clip)]
    return TextEncoders(*(TextEncoder(*parts) for parts in zip(networks, tokenizers, lengths, strict=True)))


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Put the parameters of modules that are built inside on the meta device; their buffers are real.

    `torch.device("meta")` would put the buffers there too, and no file holds the values of some (CLIP's position ids).
    """

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> Any:
        return None if parameter is None or parameter.is_meta else nn.Parameter(parameter.to("meta"))

    hook = register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        hook.remove()


def encoder_tensors(
    folder: Path, names: Sequence[str], *, device: torch.device, dtype: torch.dtype, wide: tuple[str, ...]
) -> dict[str, Tensor]:
    """Read the tensors `names` of a network from a folder, whose files hold others too (a decoder, a vision tower).

    Tensors whose names end with one of `wide` become fp32. Names that no file has are left out: `fill` lists them.
    """
    found: dict[str, Tensor] = {}
    for of_wide in (False, True):
        wanted = [p for n in names if n.endswith(wide) == of_wide for p in public_names(n)]
        for file in weight_files(folder):
            read = read_tensors if file.suffix == ".safetensors" else read_pickle
            found |= read(file, device=device, dtype=torch.float32 if of_wide else dtype, wanted=wanted)
    warn_of_constant(constant_weights(found), folder)
    present = {name: [p for p in public_names(name) if p in found] for name in names}
    return {name: found[public[0]] for name, public in present.items() if public}


def public_names(name: str) -> tuple[str, ...]:
    """Return the names that a file may give to a tensor of the network."""
    return TIED if name in TIED else (name, CLIP_PREFIX + name)


def random_embedding(text: str, *, t5_shape: tuple[int, int], clip_channels: int) -> Embedding:
    """Draw normal numbers for tests and speed measurements, seeded by the text: fp32, on the CPU.

    t5_shape: tokens, channels.
    """
    generator = torch.Generator().manual_seed(crc32(text.encode()))
    return Embedding(torch.randn(t5_shape, generator=generator), torch.randn(clip_channels, generator=generator))
