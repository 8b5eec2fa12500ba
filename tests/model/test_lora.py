"""LoRAs by PEFT, diffusers and kohya: which weights they change and by how much, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.errors import UserError
from opensora_launch.model.load import mmdit_config
from opensora_launch.model.lora import lora_change
from opensora_launch.model.lora_files import LoraChoice, parse_lora, read_lora
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.shapes import mmdit_shapes
from opensora_launch.schema.config import Init, ModelConfig

REFERENCE = Path(__file__).parents[1] / "reference"
CASE = json.loads((REFERENCE / "lora_tiny_case.json").read_text())
MMDIT = mmdit_config(CASE["config"])
SHAPES = mmdit_shapes(MMDIT)
LAYER = "double_blocks.0.img_attn.q_proj"  # [96, 96]
CPU = torch.device("cpu")


def pair_of(down: str = ".lora_A.weight", up: str = ".lora_B.weight", name: str = LAYER) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {name + down: torch.randn(4, 96, generator=rng), name + up: torch.randn(96, 4, generator=rng)}


def stored(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> LoraChoice:
    """A file; with a config, a folder by PEFT."""
    if not config:
        save_file(tensors, folder / "lora.safetensors")
        return LoraChoice(folder / "lora.safetensors", 1.0)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4} | config))
    return LoraChoice(folder, 1.0)


def change_of(lora: LoraChoice, layer: str = LAYER) -> torch.Tensor:
    return lora_change(read_lora(lora, SHAPES)[f"{layer}.weight"], CPU)


def test_a_path_and_a_strength(tmp_path: Path) -> None:
    assert parse_lora("a/b.safetensors") == LoraChoice(Path("a/b.safetensors"), 1.0)
    assert parse_lora("a@b@-0.5") == LoraChoice(Path("a@b"), -0.5)
    assert parse_lora("me@home") == LoraChoice(Path("me@home"), 1.0)
    (tmp_path / "v@2").mkdir()
    assert parse_lora(f"{tmp_path}/v@2") == LoraChoice(tmp_path / "v@2", 1.0)
    assert parse_lora(str(LoraChoice(tmp_path / "v@2", 1.0))) == LoraChoice(tmp_path / "v@2", 1.0)
    with pytest.raises(UserError, match="finite number"):
        parse_lora("a@inf")


@pytest.mark.parametrize(
    ("down", "up", "name"),
    [
        (".lora_A.weight", ".lora_B.weight", LAYER),
        (".lora_A.weight", ".lora_B.weight", f"transformer.{LAYER}"),
        (".lora_A.weight", ".lora_B.weight", f"diffusion_model.{LAYER}"),
        (".lora_A.default.weight", ".lora_B.default.weight", f"base_model.model.{LAYER}"),
        (".lora.down.weight", ".lora.up.weight", LAYER),
        (".lora_down.weight", ".lora_up.weight", "lora_unet_double_blocks_0_img_attn_q_proj"),
    ],
)
def test_names(down: str, up: str, name: str, tmp_path: Path) -> None:
    tensors = pair_of(down, up, name)
    want = tensors[name + up] @ tensors[name + down]
    assert torch.equal(change_of(stored(tmp_path, tensors)), want)
    tensors[f"{name}.alpha"] = torch.tensor(2.0, dtype=torch.bfloat16)
    assert torch.equal(change_of(stored(tmp_path, tensors)), want * 0.5)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {"img_attn.q_proj": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {r"double_blocks\.0\..*": 1, "q_proj": 2}}, 0.25),
        ({"lora_alpha": 8, "alpha_pattern": {"proj": 2}, "rank_pattern": {"q_proj": 4}}, 2.0),  # not the end of a name
    ],
)
def test_the_scale_of_peft(config: dict[str, Any], scale: float, tmp_path: Path) -> None:
    tensors = pair_of(name=f"base_model.model.{LAYER}")
    down, up = tensors.values()
    folder = stored(tmp_path, tensors, **config)
    assert torch.equal(change_of(folder), up @ down * scale)
    file = tmp_path / "adapter_model.safetensors"
    assert torch.equal(change_of(LoraChoice(file, -1.0)), up @ down * -scale)  # its config lies beside it


def wrong_config(**config: Any) -> dict[str, Any]:
    return {"lora_alpha": 8} | config


@pytest.mark.parametrize(
    ("tensors", "config", "problem"),
    [
        (pair_of(name="img_attn.q_proj"), {}, "the model has no layers for img_attn.q_proj.lora_A.weight, img_attn"),
        (pair_of() | {f"{LAYER}.lora_magnitude_vector": torch.ones(96)}, {}, "the model has no layers for "),
        (pair_of() | {f"{LAYER}.bias": torch.ones(96)}, {}, f"the model has no layers for {LAYER}.bias"),
        ({f"{LAYER}.lora_A.weight": torch.ones(4, 96)}, {}, f"{LAYER} has no up matrix"),
        ({f"{LAYER}.alpha": torch.ones(())}, {}, f"{LAYER} has no down and no up matrix"),
        (pair_of(name="img_in"), {}, "img_in has matrices [96, 4] and [4, 96], but the weight is [96, 16]"),
        ({}, {}, "it holds no tensors"),
        (pair_of(), wrong_config(use_dora=True), "use_dora cannot be merged"),
        (pair_of(), wrong_config(modules_to_save=["img_in"]), "modules_to_save cannot be merged"),
        (pair_of(), wrong_config(lora_alpha=None), "adapter_config.json is missing, or is not the config of a LoRA"),
        (pair_of(), wrong_config(alpha_pattern={"(": 1}), "adapter_config.json is missing, or is not the config of a"),
    ],
)
def test_what_does_not_fit(tensors: dict[str, Any], config: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_lora(stored(tmp_path, tensors, **config), SHAPES)
    assert any(problem in line for line in caught.value.problems or [str(caught.value)]), caught.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("init", Init)
def test_every_part_of_a_weight_has_the_same_bits(init: Init, dtype: torch.dtype, tmp_path: Path) -> None:
    """Whole, on the device, or any range: as the weight plus both changes, rounded once."""
    weights = REFERENCE / CASE["weights"]["file"]
    second = stored(tmp_path, pair_of())
    loras = [f"{REFERENCE}/lora_tiny@0.7", str(second)]
    model = ModelConfig(
        init=init, folder=str(weights.parent), mmdit_file=weights.name, mmdit_prefix="weight.", mmdit=MMDIT
    )
    with_lora = WeightSource(ModelConfig(**(vars(model) | {"lora": loras})), CPU, dtype)
    plain = WeightSource(model, CPU, torch.float32).reader()
    tensors = load_file(REFERENCE / "lora_tiny" / "adapter_model.safetensors")
    stem, name = f"base_model.model.{LAYER}", f"{LAYER}.weight"
    first = tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"] * (8 / 4 * 0.7)
    want = (plain(name) + (first + change_of(second))).to(dtype)
    assert not torch.equal(want, plain(name).to(dtype))
    assert torch.equal(with_lora.reader()(name), want)
    with torch.device("meta"):
        assert torch.equal(with_lora.on_device(MMDiT(MMDIT), [name, "img_in.bias"])[name], want)
    read = with_lora.range_reader("double_blocks.0.", {"img_attn.q_proj.weight": (96, 96)})
    assert torch.equal(read("img_attn.q_proj.weight", 1000, 5001), want.reshape(-1)[1000:5001])
