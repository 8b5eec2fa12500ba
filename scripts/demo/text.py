"""Make the demo's text encoders: tiny T5 and CLIP text models, with tokenizers made from the demo's own captions.

Shapes: B prompts, L T5 tokens, K CLIP tokens, D, P the widths of T5 and CLIP.
"""

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from demo import clips
from demo.training import Learner, Log, Schedule, Stage, gate, run_stage

T5_TOKENS = 16
CLIP_TOKENS = 32
T5_WIDTH = 96
CLIP_WIDTH = 64
SPACE = "\u2581"
SYMBOLS = sorted(string.ascii_lowercase + string.digits + string.punctuation)
FILLERS = ("big", "small", "shiny", "tiny", "lovely", "slowly", "quickly", "now", "here", "very")  # unknown to T5
DROP_SUFFIX, ADD_FILLER = 0.15, 0.10
SCHEDULE = Schedule(steps=400, batch=64, peak_rate=2e-3)
LEAST_CLASSIFIED = 0.99


def corpus() -> list[str]:
    """Return every caption as generation writes it."""
    plain = [clips.caption(c, i) for c in clips.all_combinations() for i in range(len(clips.CAPTIONS))]
    return [line + clips.PROMPT_SUFFIX for line in plain]


def words() -> list[str]:
    """Return every word of the captions as it is written there."""
    return sorted({word.strip(".") for line in corpus() for word in line.split()})


def other_cases() -> dict[str, str]:
    """Map each word in capitalised, upper and lower case to the word as it is written in the captions."""
    written = words()
    variants = {form: word for word in written for form in (word.capitalize(), word.upper(), word.lower())}
    return {form: word for form, word in variants.items() if form not in written}


def make_t5_tokenizer() -> T5Tokenizer:
    """Make a Unigram tokenizer whose pieces are the captions' words in any case; anything else is <unk>."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (SPACE, -2.0), (".", -1.0), (",", -1.0)]
    pieces += [(SPACE + word, -1.0) for word in [*words(), *other_cases()]]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_TOKENS)


def make_clip_tokenizer() -> CLIPTokenizer:
    """Learn byte pairs from the captions: each of their words is one token, other words are spelled out."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.normalizer = normalizers.Lowercase()
    learned.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(vocab_size=2000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    learned.train_from_iterator(corpus(), trainer)
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    tokens = [*SYMBOLS, *[symbol + "</w>" for symbol in SYMBOLS], *["".join(pair) for pair in merges]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_TOKENS)


@dataclass(frozen=True)
class TextEncoders:
    """Hold both encoders and their tokenizers in training; generation has its own class, without gradients."""

    t5: T5EncoderModel
    clip: CLIPTextModel
    t5_tokenizer: T5Tokenizer
    clip_tokenizer: CLIPTokenizer

    @property
    def networks(self) -> list[nn.Module]:
        """Return the two networks."""
        return [self.t5, self.clip]

    @torch.no_grad()
    def copy_cases(self) -> None:
        """Copy a trained word's embedding to its other cases: T5's tokenizer keeps the case."""
        table, number = self.t5.shared.weight, self.t5_tokenizer.convert_tokens_to_ids
        for form, word in other_cases().items():
            table[number(SPACE + form)] = table[number(SPACE + word)]

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return T5's [B, L] and CLIP's [B, K] token numbers, padded to their full length."""
        settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        t5 = self.t5_tokenizer(list(prompts), max_length=T5_TOKENS, **settings).input_ids
        clip = self.clip_tokenizer(list(prompts), max_length=CLIP_TOKENS, **settings).input_ids
        return t5, clip

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return txt [B, L, D], T5's last states with unmasked padding, and y_vec [B, P], CLIP's pooled output."""
        t5, clip = self.tokens(prompts)
        return self.t5(input_ids=t5).last_hidden_state, self.clip(input_ids=clip).pooler_output


def build_text_encoders() -> TextEncoders:
    """Return new seeded weights in bf16."""
    torch.manual_seed(8)
    t5_tokenizer, clip_tokenizer = make_t5_tokenizer(), make_clip_tokenizer()
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer), d_model=T5_WIDTH, d_kv=24, d_ff=192, num_layers=2, num_heads=4,
            relative_attention_num_buckets=16, relative_attention_max_distance=16, dropout_rate=0.0,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer), hidden_size=CLIP_WIDTH, intermediate_size=192, projection_dim=CLIP_WIDTH,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=CLIP_TOKENS,
            bos_token_id=clip_tokenizer.bos_token_id, eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )  # fmt: skip
    return TextEncoders(t5.bfloat16(), clip.bfloat16(), t5_tokenizer, clip_tokenizer)


def shipped_text_encoders(t5: Path, clip: Path) -> TextEncoders:
    """Return the encoders in these folders, in bf16."""
    networks = (
        T5EncoderModel.from_pretrained(t5, dtype=torch.bfloat16),
        CLIPTextModel.from_pretrained(clip, dtype=torch.bfloat16),
    )
    return TextEncoders(*networks, T5Tokenizer.from_pretrained(t5), CLIPTokenizer.from_pretrained(clip))


def training_prompt(combination: clips.Combination, generator: torch.Generator) -> str:
    """Draw a caption of the combination: mostly with the suffix, sometimes with words unknown to T5."""
    chance = torch.rand(3, generator=generator).tolist()
    form = 0 if chance[0] < 0.4 else int(torch.randint(len(clips.CAPTIONS), (1,), generator=generator))
    text = clips.caption(combination, form)
    if chance[1] < ADD_FILLER:
        words = text.split()
        place = int(torch.randint(len(words) + 1, (1,), generator=generator))
        words.insert(place, FILLERS[int(torch.randint(len(FILLERS), (1,), generator=generator))])
        text = " ".join(words)
    return text if chance[2] < DROP_SUFFIX else text + clips.PROMPT_SUFFIX


def targets(combos: Sequence[clips.Combination]) -> list[Tensor]:
    """Return the numbers of the colours, shapes and directions, each [B]."""
    colours, directions = list(clips.COLOURS), list(clips.DIRECTIONS)
    numbers = [(colours.index(c.colour), clips.SHAPES.index(c.shape), directions.index(c.direction)) for c in combos]
    return list(torch.tensor(numbers).unbind(1))


class Heads(nn.Module):
    """Classify the encoders' results; only used to train them."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (len(clips.COLOURS), len(clips.SHAPES), len(clips.DIRECTIONS))
        self.t5 = nn.ModuleList(nn.Linear(T5_WIDTH, size) for size in sizes)
        self.clip = nn.ModuleList(nn.Linear(CLIP_WIDTH, size) for size in sizes)

    def forward(self, txt: Tensor, y_vec: Tensor) -> list[Tensor]:
        """Return three scores from the mean of T5's states, then three from CLIP's output."""
        mean = txt.mean(1)
        return [head(mean).float() for head in self.t5] + [head(y_vec).float() for head in self.clip]


def train_text(folder: Path, log: Log) -> TextEncoders:
    """Train the encoders to distinguish colour, shape and direction; the gate uses held-out combinations."""
    encoders, heads = build_text_encoders(), Heads().bfloat16()

    def loss(generator: torch.Generator) -> dict[str, Tensor]:
        combos = clips.pick(clips.TRAINED, SCHEDULE.batch, generator)
        scores = heads(*encoders([training_prompt(c, generator) for c in combos]))
        losses = [nn.functional.cross_entropy(s, t) for s, t in zip(scores, targets(combos) * 2, strict=True)]
        return {"loss": torch.stack(losses).sum()}

    run_stage(Stage("text", folder, SCHEDULE), Learner([*encoders.networks, heads]), loss, log)
    if log.passed("text"):
        return encoders
    generator = torch.Generator().manual_seed(3)
    combos = clips.HELD_OUT * 10
    with torch.no_grad():
        scores = heads(*encoders([training_prompt(c, generator) for c in combos]))
    right = torch.stack([s.argmax(1) == t for s, t in zip(scores, targets(combos) * 2, strict=True)])
    gate(log, "text", "held-out captions classified", float(right.float().mean()), LEAST_CLASSIFIED)
    return encoders
