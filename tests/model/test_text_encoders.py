"""The text encoders from folders laid out as the public ones, against the networks that wrote the folders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from opensora_launch.errors import UserError
from opensora_launch.model.text_encoders import TextEncoders, load_text_encoders, random_embedding
from opensora_launch.schema.config import ModelConfig
from tests.model.text_folders import make_clip, make_t5, tiny_model

CPU, FP32 = torch.device("cpu"), torch.float32
TEXTS = ["a cat", ""]


def weights(network: nn.Module) -> dict[str, Tensor]:
    """As published: tied embeddings once, CLIP's text under its own prefix."""
    return {k: v.clone() for k, v in network.state_dict().items() if k != "encoder.embed_tokens.weight"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T5 as a pickle, CLIP as safetensors; and what the networks themselves give for TEXTS."""
    root = tmp_path_factory.mktemp("ckpts")
    torch.save(weights(make_t5(root / "t5")), root / "t5" / "pytorch_model.bin")
    save_file(weights(make_clip(root / "clip")), root / "clip" / "model.safetensors")
    return root


@pytest.fixture(scope="module")
def encoders(folder: Path) -> TextEncoders:
    return load_text_encoders(tiny_model(folder), device=CPU, dtype=FP32)


def test_embeddings_are_those_of_the_networks(folder: Path, encoders: TextEncoders, tmp_path: Path) -> None:
    t5, clip = make_t5(tmp_path / "t5"), make_clip(tmp_path / "clip")  # the same seeds, so the same weights
    rows = encoders.encode(TEXTS)
    assert [(row.t5.shape, row.clip.shape) for row in rows] == [((12, 16), (24,))] * 2
    pad, (start, end) = [0], (512, 513)
    for i, text in enumerate(TEXTS):
        ids = encoders.t5.tokenizer(text)["input_ids"]
        assert ids[-1] == 1
        ids = torch.tensor([ids + pad * (12 - len(ids))])
        want = t5.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        torch.testing.assert_close(rows[i].t5, want[0])
        masked = t5.encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
        assert not torch.allclose(rows[i].t5, masked[0], atol=1e-3)  # so the pads are attended
        ids = encoders.clip.tokenizer(text)["input_ids"]
        assert (ids[0], ids[-1]) == (start, end)
        ids = torch.tensor([ids + [end] * (10 - len(ids))])
        torch.testing.assert_close(rows[i].clip, clip.text_model(input_ids=ids).pooler_output[0])


def test_a_text_does_not_depend_on_its_company(encoders: TextEncoders) -> None:
    together, alone = encoders.encode(TEXTS), encoders.encode(TEXTS[:1])
    assert torch.equal(together[0].t5, alone[0].t5)
    assert torch.equal(together[0].clip, alone[0].clip)


def test_tokens_that_do_not_fit_are_counted(encoders: TextEncoders) -> None:
    long = "fox " * 30
    short_cut, long_cut = (embedding.cut for embedding in encoders.encode(["a", long]))
    assert short_cut == 0
    assert long_cut == len(encoders.t5.tokenizer(long)["input_ids"]) - 12 > 0


@pytest.mark.parametrize("form", ["one file", "shards", "old pickle", "sharded pickle"])
def test_every_form_of_weights_gives_the_same(form: str, folder: Path, encoders: TextEncoders, tmp_path: Path) -> None:
    state = weights(make_t5(tmp_path / "t5"))
    make_clip(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").symlink_to(folder / "clip" / "model.safetensors")
    names = sorted(state)
    parts = [{n: state[n] for n in names[::2]}, {n: state[n] for n in names[1::2]}]
    where = {n: i for i, part in enumerate(parts) for n in part}
    if form == "one file":
        save_file(state, tmp_path / "t5" / "model.safetensors")
    elif form == "old pickle":
        torch.save(state, tmp_path / "t5" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        stem, end = ("model", "safetensors") if form == "shards" else ("pytorch_model", "bin")
        files = [f"{stem}-0000{i}-of-00002.{end}" for i in (1, 2)]
        for file, part in zip(files, parts, strict=True):
            save_file(part, tmp_path / "t5" / file) if form == "shards" else torch.save(part, tmp_path / "t5" / file)
        index = {"weight_map": {n: files[i] for n, i in where.items()}}
        (tmp_path / "t5" / f"{stem}.{end}.index.json").write_text(json.dumps(index))
    got = load_text_encoders(tiny_model(tmp_path), device=CPU, dtype=FP32).encode(TEXTS)
    assert all(torch.equal(g.t5, e.t5) for g, e in zip(got, encoders.encode(TEXTS), strict=True))


def test_fp16_keeps_the_layers_that_overflow_in_fp32(folder: Path) -> None:
    network = load_text_encoders(tiny_model(folder), device=CPU, dtype=torch.float16).t5.network
    dtypes = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    assert {d for n, d in dtypes.items() if n.endswith(".wo.weight")} == {FP32}
    assert {d for n, d in dtypes.items() if not n.endswith(".wo.weight")} == {torch.float16}


def test_the_token_embedding_is_held_once(encoders: TextEncoders) -> None:
    state = encoders.t5.network.state_dict()
    assert state["shared.weight"].data_ptr() == state["encoder.embed_tokens.weight"].data_ptr()


def test_a_pickle_that_runs_code_is_refused(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    make_t5(tmp_path / "t5")
    make_clip(tmp_path / "clip")
    torch.save({"shared.weight": Evil()}, tmp_path / "t5" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read"):
        load_text_encoders(tiny_model(tmp_path), device=CPU, dtype=FP32)
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip")
    state = weights(make_t5(tmp_path / "t5"))
    del state["encoder.final_layer_norm.weight"]
    torch.save(state, tmp_path / "t5" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"1 missing: encoder\.final_layer_norm\.weight"):
        load_text_encoders(tiny_model(tmp_path), device=CPU, dtype=FP32)


def test_a_missing_folder_is_a_line_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_text_encoders(ModelConfig(folder=str(tmp_path)), device=CPU, dtype=FP32)
    assert [p.partition(" is missing")[0] for p in caught.value.problems] == [
        f"{tmp_path}/google/t5-v1_1-xxl/config.json",
        f"{tmp_path}/openai/clip-vit-large-patch14/config.json",
    ]
    assert all("hf download hpcai-tech/Open-Sora-v2" in p for p in caught.value.problems)


def test_random_embeddings_belong_to_the_text() -> None:
    first, empty, again = (random_embedding(text, t5_shape=(7, 5), clip_channels=3) for text in ("a", "", "a"))
    assert (first.t5.shape, first.clip.shape, first.cut) == ((7, 5), (3,), 0)
    assert torch.equal(first.t5, again.t5)
    assert torch.equal(first.clip, again.clip)
    assert not torch.equal(first.t5, empty.t5)
