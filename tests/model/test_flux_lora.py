"""LoRAs for models like Flux, whose files cut or name its matrices in other ways."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.errors import UserError
from opensora_launch.model.lora import lora_change
from opensora_launch.model.lora_files import LoraChoice, read_lora
from opensora_launch.model.lora_names import lora_targets
from opensora_launch.model.shapes import mmdit_shapes
from opensora_launch.plan.networks import FLUX
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.plan import Machine
from opensora_launch.request.compose import compose
from opensora_launch.request.verification import small_plan
from opensora_launch.schema.config import LayoutConfig, MmditConfig, Offload, Shard
from tests.worker.test_verify import verify

(POINT,) = compose(["model=tiny_flux"]).points
TINY = POINT.run.model
SHAPES = mmdit_shapes(TINY.mmdit)
WIDTH, WIDE = 96, 4 * 96
CPU = torch.device("cpu")
FIRST, SINGLE = "transformer_blocks.0.attn", "single_transformer_blocks.2"


def pair(name: str, outputs: int, inputs: int = WIDTH, seed: int = 0, rank: int = 3) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        f"{name}.lora_A.weight": torch.randn(rank, inputs, generator=rng),
        f"{name}.lora_B.weight": torch.randn(outputs, rank, generator=rng),
    }


def product(tensors: dict[str, Tensor], name: str) -> Tensor:
    return tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]


def stored(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> LoraChoice:
    save_file(tensors, folder / "lora.safetensors", metadata)
    return LoraChoice(folder / "lora.safetensors", 1.0)


def change_of(lora: LoraChoice, layer: str) -> Tensor:
    return lora_change(read_lora(lora, SHAPES)[f"{layer}.weight"], CPU)


def test_every_name_of_diffusers_means_the_rows_that_its_converter_takes() -> None:
    """Each row of the public file's weights is a number of its own; diffusers' converter shows where it goes."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    shapes = mmdit_shapes(FLUX.mmdit)
    numbers, first = dict[str, Tensor](), 0
    for name, shape in shapes.items():
        numbers[name] = torch.arange(first, first + shape[0])[:, None]
        first += shape[0]
    where = {name: int(rows[0]) for name, rows in numbers.items()}
    converted = convert_flux_transformer_checkpoint_to_diffusers(dict(numbers))
    targets = {name: target for name, target in lora_targets(shapes).items() if f"{name}.weight" not in shapes}
    norms = ("norm_q.weight", "norm_k.weight", "norm_added_q.weight", "norm_added_k.weight")
    linear = {name for name in converted if name.endswith(".weight") and not name.endswith(norms)}
    assert {f"{name}.weight" for name in targets} == linear
    for name, target in targets.items():
        start = where[f"{target.layer}.weight"]
        rows = torch.cat([torch.arange(start + a, start + b) for a, b in target.rows])
        assert torch.equal(converted[f"{name}.weight"].flatten(), rows), name


@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model."])
def test_parts_of_one_matrix(prefix: str, tmp_path: Path) -> None:
    """q and v of a double block, and all of a single block's first product."""
    tensors = pair(f"{prefix}{FIRST}.to_q", WIDTH) | pair(f"{prefix}{FIRST}.to_v", WIDTH, seed=1)
    parts = [f"{prefix}{SINGLE}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    for number, name in enumerate(parts):
        tensors |= pair(name, WIDE if number == 3 else WIDTH, seed=number, rank=number + 1)
    lora = stored(tmp_path, tensors)
    q, v = (product(tensors, f"{prefix}{FIRST}.{name}") for name in ("to_q", "to_v"))
    assert torch.equal(change_of(lora, "double_blocks.0.img_attn.qkv"), torch.cat([q, torch.zeros(WIDTH, WIDTH), v]))
    whole = torch.cat([product(tensors, name) for name in parts])
    assert torch.equal(change_of(lora, "single_blocks.2.linear1"), whole)
    assert set(read_lora(lora, SHAPES)) == {"double_blocks.0.img_attn.qkv.weight", "single_blocks.2.linear1.weight"}


def test_the_last_layer_has_scale_and_shift_the_other_way_round(tmp_path: Path) -> None:
    tensors = pair("transformer.norm_out.linear", 2 * WIDTH)
    scale, shift = product(tensors, "transformer.norm_out.linear").chunk(2)
    got = change_of(stored(tmp_path, tensors), "final_layer.adaLN_modulation.1")
    assert torch.equal(got, torch.cat([shift, scale]))


@pytest.mark.parametrize(
    ("name", "layer", "first"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "double_blocks.0.img_attn.qkv", 0),
        ("lora_unet_single_blocks_2_linear1", "single_blocks.2.linear1", 0),
        ("lora_transformer_transformer_blocks_1_attn_add_k_proj", "double_blocks.1.txt_attn.qkv", WIDTH),
        ("lora_transformer_single_transformer_blocks_0_proj_mlp", "single_blocks.0.linear1", 3 * WIDTH),
    ],
)
def test_names_with_underscores_and_an_alpha(name: str, layer: str, first: int, tmp_path: Path) -> None:
    count = SHAPES[f"{layer}.weight"][0] if "transformer" not in name else WIDE if "mlp" in name else WIDTH
    named = pair(name, count)
    down, up = named.values()
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(6.0)}
    got = change_of(stored(tmp_path, tensors), layer)
    assert torch.equal(got[first : first + count], up @ down * 2)
    assert not got[:first].any()
    assert not got[first + count :].any()


def test_both_kinds_of_names_add_up(tmp_path: Path) -> None:
    tensors = pair(f"transformer.{FIRST}.to_k", WIDTH) | pair("double_blocks.0.img_attn.qkv", 3 * WIDTH, seed=1)
    want = product(tensors, "double_blocks.0.img_attn.qkv")
    want[WIDTH : 2 * WIDTH] += product(tensors, f"transformer.{FIRST}.to_k")
    torch.testing.assert_close(change_of(stored(tmp_path, tensors), "double_blocks.0.img_attn.qkv"), want)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 3, "lora_alpha": 6}, 2.0),
        ({"r": 3, "lora_alpha": 6, "alpha_pattern": {"attn.to_k": 12}}, 4.0),
        ({"r": 3, "lora_alpha": 6, "alpha_pattern": {"attn.to_q": 12}}, 2.0),
    ],
)
def test_the_scale_that_diffusers_keeps_in_the_file(config: dict[str, Any], scale: float, tmp_path: Path) -> None:
    tensors = pair(f"transformer.{FIRST}.to_k", WIDTH)
    about = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    got = change_of(stored(tmp_path, tensors, {"lora_adapter_metadata": about}), "double_blocks.0.img_attn.qkv")
    assert torch.equal(got[WIDTH : 2 * WIDTH], product(tensors, f"transformer.{FIRST}.to_k") * scale)
    about = json.dumps({"transformer.lora_alpha": 6, "transformer.use_dora": True})
    with pytest.raises(UserError, match="use_dora cannot be merged"):
        read_lora(stored(tmp_path, tensors, {"lora_adapter_metadata": about}), SHAPES)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (pair("double_blocks.0.processor.qkv_lora1", 3 * WIDTH), "the model has no layers for double_blocks.0.proc"),
        (pair("text_encoder.text_model.encoder.layers.0.mlp.fc1", 8), "the model has no layers for text_encoder.te"),
        (pair("transformer.transformer_blocks.7.attn.to_q", WIDTH), "the model has no layers for transformer.transf"),
        (pair(f"transformer.{FIRST}.to_q", 2 * WIDTH), f"{FIRST}.to_q has matrices [192, 3] and [3, 96], but the w"),
        ({f"{FIRST}.norm_q.weight": torch.ones(24)}, f"the model has no layers for {FIRST}.norm_q.weight"),
    ],
)
def test_what_cannot_be_mapped_is_named(tensors: dict[str, Tensor], problem: str, tmp_path: Path) -> None:
    known = pair("transformer.proj_out", 16)
    with pytest.raises(UserError) as caught:
        read_lora(stored(tmp_path, tensors | known), SHAPES)
    (line,) = caught.value.problems
    assert problem in line


def test_the_video_models_layers_have_no_such_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not fit the model"):
        read_lora(stored(tmp_path, pair(f"transformer.{FIRST}.to_q", 3072, 3072)), mmdit_shapes(MmditConfig()))


def some_lora(folder: Path) -> str:
    tensors = pair(f"transformer.{FIRST}.to_k", WIDTH) | pair(f"transformer.{SINGLE}.proj_mlp", WIDE, seed=1)
    return str(stored(folder, tensors | pair("transformer.norm_out.linear", 2 * WIDTH, seed=2)).path)


def test_every_part_of_a_fused_weight_has_the_same_bits(tmp_path: Path) -> None:
    name, dtype = "double_blocks.0.img_attn.qkv.weight", torch.bfloat16
    model = replace(TINY, lora=[some_lora(tmp_path)])
    plain = WeightSource(TINY, CPU, torch.float32).reader()
    change = lora_change(read_lora(LoraChoice(Path(model.lora[0]), 1.0), SHAPES)[name], CPU)
    want = (plain(name) + change).to(dtype)
    assert not torch.equal(want, plain(name).to(dtype))
    assert torch.equal(want[:WIDTH], plain(name).to(dtype)[:WIDTH])
    source = WeightSource(model, CPU, dtype)
    assert torch.equal(source.reader()(name), want)
    read = source.range_reader("double_blocks.0.", {"img_attn.qkv.weight": (3 * WIDTH, WIDTH)})
    assert torch.equal(read("img_attn.qkv.weight", 5000, 15001), want.reshape(-1)[5000:15001])


@pytest.mark.parametrize(
    ("ranks", "layout", "placement"),
    [
        (1, LayoutConfig(), Placement(offload=Offload.host)),
        pytest.param(2, LayoutConfig(ulysses=2), Placement(shard=Shard.all), marks=pytest.mark.slow),
        pytest.param(2, LayoutConfig(tp=2), Placement(), marks=pytest.mark.slow),
        pytest.param(3, LayoutConfig(ring=3), Placement(shard=Shard.all, offload=Offload.host), marks=pytest.mark.slow),
    ],
    ids=["offloaded", "sharded", "tp", "sharded and offloaded"],
)
def test_an_image_with_a_lora_on_any_placement(
    ranks: int, layout: LayoutConfig, placement: Placement, tmp_path: Path
) -> None:
    run = replace(POINT.run, model=replace(TINY, lora=[some_lora(tmp_path)]), layout=layout)
    plan = replace(small_plan(run, Machine("cpu", 1, ranks, 2)), placement=placement)
    lines = verify(ranks, layout, [], tmp_path, plan=plan)
    assert [line["ok"] for line in lines] == [True, True]
    assert max(line["max_abs_one_rank"] for line in lines) <= (0 if ranks == 1 else 1e-4)
