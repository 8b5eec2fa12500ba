"""The demo models' files in the package: small, in the public layout, loaded offline; what they make of words."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from demo import clips, coders, files, generate, judge, mmdit, score, vae

from opensora_launch.model.load import load_mmdit
from opensora_launch.model.vae import load_vae
from opensora_launch.sampling.latents import position_ids

EXPECTED = {
    "Open_Sora_v2.safetensors",
    "F16T4C32_AE.safetensors",
    "Open_Sora_v2_Video_DC_AE.safetensors",
    "config.json",
    "config_dc_ae.json",
    "config_flux.json",
    "flux1-demo-ae.safetensors",
    "flux1-demo.safetensors",
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
    assert files.total_bytes() <= 28_000_000


@pytest.mark.parametrize("name", sorted(name for name in EXPECTED if name.endswith(".safetensors")))
def test_weights_are_bf16_and_finite(name):
    with safe_open(files.FOLDER / name, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- it is no dict
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


@pytest.mark.parametrize("model", files.MODELS.values(), ids=list(files.MODELS))
def test_the_config_is_what_training_used(model):
    config = json.loads(model.config_path.read_text())
    scale = vae.LatentScale(config["vae"]["scale_factor"], config["vae"]["shift_factor"])
    assert config == json.loads(json.dumps(files.facts(model, scale)))


def test_case_and_unknown_words(networks):
    texts = ["a red circle moving up.", "A RED Circle moving up.", "zebra."]
    plain, shouted, strange = (embedding.t5 for embedding in networks.text.encode(texts))
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


def test_the_dc_ae_model_draws_what_a_new_caption_says():
    combination = clips.HELD_OUT[1]
    networks = generate.load(files.model_config(files.DC_AE))
    (clip,) = generate.generate(networks, [generate.Request(clips.caption(combination), seed=3)])
    assert clip.shape == (3, 16, 64, 64)
    assert judge.judge(clip).agrees(combination)


def test_an_image_of_a_new_caption_becomes_the_first_frame_of_its_video(networks):
    combination = clips.HELD_OUT[1]
    request = generate.Request(clips.caption(combination), seed=3)
    image = generate.generate(generate.load(files.model_config(files.IMAGE)), [request])
    assert image.shape == (1, 3, 1, 64, 64)
    assert judge.judge(image[0]).agrees(combination)
    first = score.eight_bits(image[0, :, 0])
    (clip,) = generate.generate(networks, [replace(request, cond_type="i2v_head", images=(first,))])
    assert judge.judge(clip).agrees(combination)
    assert judge.psnr(clip[:, 0], first) > 25


@pytest.mark.parametrize("frames", [1, 17])
def test_flux_layout_computes_what_the_demo_does(networks, frames):
    """The image model starts from these weights: fused products and other rotary pairs change nothing."""
    config = {**mmdit.IMAGE, "depth_single_blocks": 5}
    fused = load_mmdit(config, mmdit.in_flux_layout(networks.mmdit.state_dict(), config))
    draw = torch.Generator().manual_seed(0)
    count = 16 * frames
    inputs = {
        "img": torch.randn(1, count, 32, generator=draw),
        "img_ids": position_ids(frames, 4, 4, generate.CPU),
        "txt": torch.randn(1, 5, 96, generator=draw),
        "txt_ids": torch.zeros(1, 5, 3),
        "timesteps": torch.tensor([0.4]),
        "y_vec": torch.randn(1, 64, generator=draw),
    }
    with torch.no_grad():
        torch.testing.assert_close(fused(**inputs), networks.mmdit(**inputs, cond=torch.zeros(1, count, 36)))


def test_the_image_models_autoencoder_keeps_its_weights_under_public_names():
    coder = coders.Image()
    loaded = load_vae(coders.vae_config(coders.IMAGE), files.coder_weights(files.IMAGE, coder))
    assert all(torch.equal(x, coder.network.state_dict()[name]) for name, x in loaded.state_dict().items())
