"""Folders of tiny text encoders, laid out as the public ones: sentencepiece and pickle for T5, the whole CLIP."""

import io
import json
from pathlib import Path

import sentencepiece
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, T5Config, T5ForConditionalGeneration

from opensora_launch.schema.config import MmditConfig, ModelConfig, TextConfig

WORDS = [
    "a cat walks on the beach",
    "raining, sea. 24 FPS. 4 motion score.",
    "the quick brown fox jumps over a lazy dog",
]


def tiny_model(folder: Path) -> ModelConfig:
    return ModelConfig(
        folder=str(folder),
        t5_folder="t5",
        clip_folder="clip",
        mmdit=MmditConfig(context_in_dim=16, vec_in_dim=24),
        text=TextConfig(t5_max_length=12, clip_max_length=10),
    )


def make_t5(folder: Path) -> T5ForConditionalGeneration:
    """Encoder and decoder, as published; the weights are left to the test to write."""
    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 3),
        model_writer=model,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    config = T5Config(
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        vocab_size=64,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    config.save_pretrained(folder)
    torch.manual_seed(0)
    return T5ForConditionalGeneration(config).eval()


def make_clip(folder: Path) -> CLIPModel:
    """Text and vision, as published: the end of a text is token 2 in the config, and the largest id in fact."""
    folder.mkdir(parents=True)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end = "<|endoftext|>"
    tokenizer = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **tokenizer}))
    text = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(tokens),
        "max_position_embeddings": 10,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "projection_dim": 24,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "projection_dim": 24,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    config.save_pretrained(folder)
    torch.manual_seed(1)
    return CLIPModel(config).eval()
