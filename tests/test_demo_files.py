"""The demo model's files in the package: small, in the public layout, loaded offline; what words mean to them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from demo import clips, files, generate, vae

EXPECTED = {
    "Open_Sora_v2.safetensors",
    "config.json",
    "hunyuan_vae.safetensors",
    "google/t5-v1_1-xxl/config.json",
    "google/t5-v1_1-xxl/model.safetensors",
    "google/t5-v1_1-xxl/tokenizer.json",
    "google/t5-v1_1-xxl/tokenizer_config.json",
    "openai/clip-vit-large-patch14/config.json",
    "openai/clip-vit-large-patch14/model.safetensors",
    "openai/clip-vit-large-patch14/tokenizer.json",
    "openai/clip-vit-large-patch14/tokenizer_config.json",
}


@pytest.fixture(scope="module")
def networks():
    return generate.load(files.model_config())


def test_layout_and_size():
    found = {str(path.relative_to(files.FOLDER)) for path in files.FOLDER.rglob("*") if path.is_file()}
    assert found == EXPECTED
    assert files.total_bytes() <= 10_000_000


@pytest.mark.parametrize("name", sorted(name for name in EXPECTED if name.endswith(".safetensors")))
def test_weights_are_bf16_and_finite(name):
    with safe_open(files.FOLDER / name, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- it is no dict
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_the_config_is_what_training_used():
    config = json.loads((files.FOLDER / "config.json").read_text())
    scale = vae.LatentScale(config["vae"]["scale_factor"], config["vae"]["shift_factor"])
    assert config == json.loads(json.dumps(files.facts(scale)))


def test_case_and_unknown_words(networks):
    plain, shouted, strange = networks.text.encode(["a red circle moving up.", "A RED Circle moving up.", "zebra."]).t5
    assert torch.equal(plain, shouted)
    assert bool(strange.isfinite().all())
    assert not torch.allclose(plain, strange, atol=0.1)


def test_a_true_clip_survives_the_vae(networks):
    combination = clips.Combination("blue", "triangle", "left")
    clip = generate.true_clip(combination, seed=1)
    scaled = generate.encode(networks, clip[None])
    back = generate.decode(networks, scaled)[0]
    assert scaled.shape == (1, 8, 5, 8, 8)
    assert 0.5 < float(scaled.std()) < 2
    assert float((back - clip).square().mean()) < 0.01
