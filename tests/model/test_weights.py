"""Tensors read by slices, and random ones that keep activations sane."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opensora_launch.errors import UserError
from opensora_launch.model import load_mmdit
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.vae import decode_latents, load_vae
from opensora_launch.model.weights import constant_weights, random_tensors, read_pickle, read_tensors
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.config import MmditConfig

CPU, FP32, BF16 = torch.device("cpu"), torch.float32, torch.bfloat16
TINY: dict[str, Any] = {
    "in_channels": 16,
    "vec_in_dim": 24,
    "context_in_dim": 32,
    "hidden_size": 128,
    "num_heads": 8,
    "depth": 4,
    "depth_single_blocks": 8,
    "axes_dim": [4, 6, 6],
}


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {"a.x": torch.randn(3, 4), "a.y": torch.randn(5), "b.x": torch.arange(6)}


def test_weights_that_are_one_number_are_found() -> None:
    tensors = {
        "zeros": torch.zeros(3, 4), "ones": torch.ones(2, 2, 2, dtype=BF16), "bias": torch.zeros(5),
        "one": torch.ones(1, 1), "none": torch.zeros(0, 3), "nan": torch.full((2, 2), torch.nan),
        "ends": torch.tensor([[1.0, 2.0], [3.0, 1.0]]),
    }  # fmt: skip
    assert constant_weights(tensors) == ["zeros", "ones"]


def test_tensors_are_read_as_asked(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(tensors, path)
    same = read_tensors(path, device=CPU)
    assert set(same) == set(tensors)
    assert all(torch.equal(same[n], t) and same[n].dtype == t.dtype for n, t in tensors.items())
    half = read_tensors(path, device=CPU, dtype=BF16, prefix="a.")
    assert set(half) == {"x", "y"}
    assert torch.equal(half["x"], tensors["a.x"].to(BF16))
    assert set(read_tensors(path, device=CPU, wanted=["a.y", "c"])) == {"a.y"}
    assert set(read_tensors(path, device=CPU, prefix="a.", wanted=["y"])) == {"y"}


@pytest.mark.parametrize("new_form", [True, False])
def test_pickles_of_both_forms(new_form: bool, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "file.bin", _use_new_zipfile_serialization=new_form)
    got = read_pickle(tmp_path / "file.bin", device=CPU, dtype=BF16, wanted=["a.x", "c"])
    assert set(got) == {"a.x"}
    assert torch.equal(got["a.x"], tensors["a.x"].to(BF16))


def test_a_file_that_is_no_pickle(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"file\.bin cannot be read"):
        read_pickle(tmp_path / "file.bin", device=CPU, dtype=BF16, wanted=["a"])


def test_any_part_of_the_random_tensors_can_be_made_alone() -> None:
    with torch.device("meta"):
        module = MMDiT(MmditConfig(**TINY))
    every = random_tensors(module, seed=3, dtype=FP32, device=CPU)
    assert set(every) == set(module.state_dict())
    part = random_tensors(module, seed=3, dtype=FP32, device=CPU, wanted=["txt_in.weight", "txt_in.bias"])
    assert all(torch.equal(part[n], every[n]) for n in part)
    assert set(part) == {"txt_in.weight", "txt_in.bias"}
    assert len({float(t.sum()) for n, t in every.items() if n.endswith("_proj.weight")}) == 4 * 6 + 8 * 2
    other = random_tensors(module, seed=4, dtype=FP32, device=CPU, wanted=["txt_in.weight"])
    assert not torch.equal(other["txt_in.weight"], every["txt_in.weight"])
    half = random_tensors(module, seed=3, dtype=BF16, device=CPU, wanted=["txt_in.weight"])
    assert torch.equal(half["txt_in.weight"], every["txt_in.weight"].to(BF16))


def test_the_random_transformer_keeps_the_size_of_activations() -> None:
    with torch.device("meta"):
        module = MMDiT(MmditConfig(**TINY))
    model = load_mmdit(TINY, random_tensors(module, seed=0, dtype=FP32, device=CPU))
    g = torch.Generator().manual_seed(0)
    ids = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (2, 4, 4)), indexing="ij"), dim=-1).reshape(1, 32, 3)
    out = model(
        img=torch.randn(1, 32, 16, generator=g),
        img_ids=ids.float(),
        txt=torch.randn(1, 8, 32, generator=g),
        txt_ids=torch.zeros(1, 8, 3),
        timesteps=torch.tensor([0.7]),
        y_vec=torch.randn(1, 24, generator=g),
        cond=torch.zeros(1, 32, 20),
    )
    assert bool(out.isfinite().all())
    assert 0.5 < float(out.std()) < 2.0


def test_the_random_vae_keeps_the_size_of_activations() -> None:
    cfg = VaeConfig(latent_channels=4, norm_num_groups=4, block_out_channels=[8, 16, 16, 16], tile_px=None)
    with torch.device("meta"):
        module = CausalVae(cfg)
    vae = load_vae(cfg, random_tensors(module, seed=0, dtype=FP32, device=CPU))
    pixels = decode_latents(vae, cfg, torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert pixels is not None
    assert pixels.shape == (1, 3, 5, 32, 32)
    assert bool(pixels.isfinite().all())
    assert 0.2 < float(pixels.std()) < 5.0
