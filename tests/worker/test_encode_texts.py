"""Text in little memory: layer by layer the same bits; remembered embeddings are the encoders' own."""

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from opensora_launch.engines.text_team import load_fitting_encoders, stream_t5
from opensora_launch.model.text_encoders import Embedding, load_text_encoders
from opensora_launch.parallel.mesh import Axis
from opensora_launch.schema.config import Init, ModelConfig
from opensora_launch.worker.encode_texts import TextCache, encode_texts, send_embeddings
from tests.model.text_folders import WORDS, make_clip, make_t5, tiny_model
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]
CPU, META = torch.device("cpu"), torch.device("meta")


def unrecorded(*args):
    return nullcontext()


def alone() -> Axis:
    """One rank, whose group is never used."""
    group = dist.ProcessGroup(torch.distributed.HashStore(), 0, 1)  # type: ignore[attr-defined]
    return Axis("text", (0,), 0, group, unrecorded)


def encoder(model: ModelConfig) -> Callable[[Sequence[str]], list[Embedding]]:
    return lambda texts: load_fitting_encoders(model, alone(), CPU, torch.float32).encode(texts)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("ckpts")
    for name, network in (("t5", make_t5(folder / "t5")), ("clip", make_clip(folder / "clip"))):
        tensors = {k: v.clone().contiguous() for k, v in network.state_dict().items()}
        save_file(tensors, folder / name / "model.safetensors")
    return tiny_model(folder)


def test_t5_layer_by_layer_gives_the_same_bits(model):
    want = load_text_encoders(model, device=CPU, dtype=torch.float32).encode(WORDS)
    streamed = stream_t5(load_text_encoders(model, device=CPU, dtype=torch.float32), alone(), CPU)
    for _ in range(2):  # what the last layer of one text sent for is the first of the next
        for got, whole in zip(streamed.encode(WORDS), want, strict=True):
            assert torch.equal(got.t5, whole.t5)
            assert torch.equal(got.clip, whole.clip)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "layer by layer"])
def test_the_encoders_are_freed_as_soon_as_they_are_not_needed(streamed, model):
    """The transformer's weights come next, and the collector may run much later."""
    encoders = load_text_encoders(model, device=CPU, dtype=torch.float32)
    encoders = stream_t5(encoders, alone(), CPU) if streamed else encoders
    parts = [
        weakref.ref(x) for e in (encoders.t5, encoders.clip) for x in (*e.network.modules(), *e.network.parameters())
    ]
    gc.collect()
    gc.disable()
    try:
        encoders.encode(WORDS)
        del encoders
        assert len(parts) > 80
        assert [part() for part in parts if part() is not None] == []
    finally:
        gc.enable()


def test_layers_and_what_is_between_them_are_on_one_device(model):
    """Also what is not a layer, whatever its name: nothing stays where it was loaded. A tensor of two names is one."""
    streamed = stream_t5(load_text_encoders(model, device=CPU, dtype=torch.float32), alone(), META)
    networks = [streamed.t5.network, streamed.clip.network]
    assert {x.device for n in networks for x in (*n.parameters(), *n.buffers())} == {META}


def test_a_text_is_encoded_once_and_remembered(model, tmp_path, monkeypatch):
    cache = TextCache.of(tmp_path, model, "this CPU", torch.float32)
    texts = ["raining", "", "raining, sea"]
    want = encode_texts(model, texts, encoder(model), torch.float32, None)
    first = encode_texts(model, texts[:2], encoder(model), torch.float32, cache)
    asked: list[str] = []

    def watched(*args, **kwargs):
        encoders = load_text_encoders(*args, **kwargs)

        def tokenizer(text, **how):
            asked.append(text)
            return encoders.t5.tokenizer(text, **how)

        return replace(encoders, t5=replace(encoders.t5, tokenizer=tokenizer))

    monkeypatch.setattr("opensora_launch.engines.text_team.load_text_encoders", watched)
    second = encode_texts(model, texts, encoder(model), torch.float32, cache)
    assert set(asked) == {"raining, sea"}, "the others came from the disk"
    for got in (first, second):
        assert all(torch.equal(g.t5, w.t5) and torch.equal(g.clip, w.clip) for g, w in zip(got, want, strict=False))


@pytest.mark.parametrize("other", ["device", "dtype", "length", "weights"])
def test_another_encoder_has_other_files(other, model, tmp_path):
    cache = TextCache.of(tmp_path, model, "a", torch.float32)
    (embedding,) = encode_texts(model, ["x"], encoder(model), torch.float32, cache)
    assert cache.read("x") is not None
    assert cache.read("y") is None
    if other == "weights":
        os.utime(Path(model.folder) / "t5/model.safetensors", (1, 1))
    changed = replace(model, text=replace(model.text, t5_max_length=5)) if other == "length" else model
    device, dtype = "b" if other == "device" else "a", torch.bfloat16 if other == "dtype" else torch.float32
    assert TextCache.of(tmp_path, changed, device, dtype).read("x") is None
    assert embedding.t5.shape == (12, 16)


def test_a_damaged_or_unwritable_cache_costs_time_only(model, tmp_path):
    cache = TextCache.of(tmp_path, model, "a", torch.float32)
    want = encode_texts(model, ["x"], encoder(model), torch.float32, cache)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"torn")
    assert torch.equal(encode_texts(model, ["x"], encoder(model), torch.float32, cache)[0].t5, want[0].t5)
    nowhere = replace(cache, folder=file / "below a file")
    assert torch.equal(encode_texts(model, ["x"], encoder(model), torch.float32, nowhere)[0].t5, want[0].t5)


def shared_on_rank(model: ModelConfig) -> float:
    ranks = tuple(range(dist.get_world_size()))
    axis = Axis("text", ranks, dist.get_rank(), dist.new_group(list(ranks), timeout=timedelta(seconds=30)), unrecorded)
    texts = ["a", "b"]
    encoded = encode_texts(model, texts, encoder(model), torch.float32, None) if axis.index == 0 else None
    got = send_embeddings(axis, texts, encoded)
    return float(got["a"].t5.sum() - got["b"].t5.sum())


def test_every_rank_gets_what_the_first_encoded(model, tmp_path):
    first, second = run_ranks(2, tmp_path, shared_on_rank, replace(model, init=Init.random))
    assert first == second != 0


def test_a_rank_imports_no_encoders_before_a_text_needs_them():
    """They take seconds of CPU time on every rank, and where all texts are in the cache nothing needs them."""
    code = "import sys, opensora_launch.worker.run_rank; print({'transformers', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"
