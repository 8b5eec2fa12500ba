"""What the launcher can say about weight files before anything starts, without torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.load import shapes_of
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.shapes import config_problems, mmdit_shapes, vae_shapes
from opensora_launch.model.weight_files import check_files, read_header
from opensora_launch.model.weights import read_tensors
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.config import Init, MmditConfig, ModelConfig
from tests.model.text_folders import make_clip, make_t5

REFERENCE = Path(__file__).parents[1] / "reference"
CONFIGS = {
    name: MmditConfig(**json.loads((REFERENCE / f"mmdit_tiny_{name}.json").read_text())["config"])
    for name in ("t2v", "i2v", "flux")
}
CONFIGS |= {"open_sora_v2": MmditConfig(), "no_bias": MmditConfig(qkv_bias=False, depth=1, depth_single_blocks=1)}
TINY_VAE = VaeConfig(latent_channels=4, norm_num_groups=4, block_out_channels=[4, 8, 8, 8], layers_per_block=1)
TINY_MMDIT = MmditConfig(
    in_channels=16,
    vec_in_dim=24,
    context_in_dim=16,
    hidden_size=32,
    num_heads=2,
    depth=1,
    depth_single_blocks=1,
    axes_dim=[4, 6, 6],
)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_the_transformers_shapes_are_those_of_the_module(cfg: MmditConfig) -> None:
    with torch.device("meta"):
        assert mmdit_shapes(cfg) == shapes_of(MMDiT(cfg).state_dict())


def test_the_released_transformer_has_the_published_size() -> None:
    sizes = [torch.Size(s).numel() for s in mmdit_shapes(MmditConfig()).values()]
    assert (len(sizes), sum(sizes)) == (1082, 11_891_390_528)


@pytest.mark.parametrize("cfg", [VaeConfig(), TINY_VAE])
def test_the_vaes_shapes_are_those_of_the_module(cfg: VaeConfig) -> None:
    with torch.device("meta"):
        assert vae_shapes(cfg) == shapes_of(CausalVae(cfg).state_dict())


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    """A complete folder of a tiny model."""
    save_file({n: torch.zeros(s) for n, s in mmdit_shapes(TINY_MMDIT).items()}, tmp_path / "dit.safetensors")
    save_file({n: torch.zeros(s) for n, s in vae_shapes(TINY_VAE).items()}, tmp_path / "vae.safetensors")
    torch.save(make_t5(tmp_path / "t5").state_dict(), tmp_path / "t5" / "pytorch_model.bin")
    clip = make_clip(tmp_path / "clip").state_dict()
    save_file({k: v.clone() for k, v in clip.items()}, tmp_path / "clip" / "model.safetensors")
    return ModelConfig(
        folder=str(tmp_path),
        mmdit_file="dit.safetensors",
        vae_file="vae.safetensors",
        t5_folder="t5",
        clip_folder="clip",
        download="get it",
        mmdit=TINY_MMDIT,
        vae=TINY_VAE,
    )


def test_a_complete_folder_has_no_problems(model: ModelConfig) -> None:
    assert check_files(model) == []


def test_a_folder_in_place_of_a_file_is_not_missing(model: ModelConfig, tmp_path: Path) -> None:
    folder = Path(model.folder)
    (folder / model.mmdit_file).unlink()
    (folder / model.mmdit_file).mkdir()
    assert check_files(model) == [f"{folder / model.mmdit_file} is a folder, but a file is expected there"]
    found = check_files(replace(model, folder=str(folder / model.vae_file)))
    assert set(found) == {f"{folder / model.vae_file} is a file, but a folder is expected there"}


def test_every_missing_file_is_named_with_the_command(tmp_path: Path) -> None:
    assert check_files(ModelConfig(folder=str(tmp_path / "ckpts"), download="get it")) == [
        f"{tmp_path}/ckpts/{name} is missing; to download it: get it"
        for name in (
            "Open_Sora_v2.safetensors",
            "hunyuan_vae.safetensors",
            "google/t5-v1_1-xxl",
            "openai/clip-vit-large-patch14",
        )
    ]


def in_shards(path: Path, name: str = "") -> list[Path]:
    """The file as two, and the index that names them; `name` is the index's, or else the public way to call it."""
    tensors = load_file(path)
    files, parts = [path.with_name(f"{path.stem}-{i}.safetensors") for i in (1, 2)], list(tensors)
    for i, file in enumerate(files):
        save_file({n: tensors[n] for n in parts[i::2]}, file)
    index = {"metadata": {}, "weight_map": {n: files[k % 2].name for k, n in enumerate(parts)}}
    path.with_name(name or f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()
    return files


def test_a_checkpoint_in_shards(model: ModelConfig, tmp_path: Path) -> None:
    """An index where the file would be, or one that is named; truncated and missing shards are named."""
    whole = read_tensors(tmp_path / "dit.safetensors", device=torch.device("cpu"))
    first, second = in_shards(tmp_path / "dit.safetensors")
    in_shards(tmp_path / "vae.safetensors", "other.json")
    named = replace(model, vae_file="other.json")
    assert check_files(named) == []
    got = read_tensors(tmp_path / "dit.safetensors", device=torch.device("cpu"))
    assert {name: torch.equal(got[name], x) for name, x in whole.items()} == dict.fromkeys(whole, True)
    cut(first)
    second.unlink()
    assert check_files(named) == [f"{second} is missing; to download it: get it"]
    save_file({"x": torch.zeros(1)}, second)
    assert "dit-1.safetensors is truncated" in check_files(named)[0]
    (tmp_path / "dit.safetensors.index.json").write_text("[]")
    assert "is not an index of weight files" in check_files(named)[0]


def test_numbers_that_are_not_weights_as_they_stand_are_refused(model: ModelConfig, tmp_path: Path) -> None:
    path = tmp_path / "dit.safetensors"
    tensors = load_file(path)
    save_file({n: x.to(torch.float8_e4m3fn) if x.ndim == 2 else x.half() for n, x in tensors.items()}, path)
    assert check_files(model) == [f"{path} holds F8_E4M3 numbers; only BF16, F16, F32, F64 can be read"]


def test_random_weights_need_no_files(tmp_path: Path) -> None:
    assert check_files(ModelConfig(folder=str(tmp_path), init=Init.random)) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def save_as_pickle(path: Path) -> None:
    torch.save({name: tensor.clone() for name, tensor in load_file(path).items()}, path)


def write(text: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(text)

    return damage


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("dit.safetensors", cut, "is truncated: it has"),
        ("vae.safetensors", cut_in_the_header, "is truncated: its header needs"),
        ("vae.safetensors", write(b""), "is not a safetensors file (0 bytes)"),
        ("vae.safetensors", write(b"version https://git-lfs"), "is not a safetensors file (23 bytes)"),
        ("vae.safetensors", write((9).to_bytes(8, "little") + b"[1, 2, 3]"), "its header cannot be read"),
        ("vae.safetensors", write((9).to_bytes(8, "little") + b'{"a": {}}'), "its header cannot be read"),
        ("dit.safetensors", save_as_pickle, "is a pickle; to convert it: python -c"),
        (
            "dit.safetensors",
            lambda p: save_file({"x": torch.zeros(1)}, p),
            "does not match the config: 1 unexpected: x",
        ),
        ("t5/pytorch_model.bin", cut, "is truncated, or not a file by torch.save"),
        ("t5/pytorch_model.bin", Path.unlink, "t5/model.safetensors is missing; to download it: get it"),
        ("t5/spiece.model", Path.unlink, "t5/tokenizer.json is missing"),
        ("clip/model.safetensors", cut, "is truncated: it has"),
        ("clip/config.json", Path.unlink, "clip/config.json is missing"),
        ("clip/config.json", write(b"{"), "is not the config of a text encoder"),
        ("t5/config.json", write(b'{"d_model": 8}'), "8 channels, but model.mmdit.context_in_dim is 16"),
        (
            "clip/config.json",
            write(b'{"text_config": {"hidden_size": 8}}'),
            "8 channels, but model.mmdit.vec_in_dim is 24",
        ),
        (
            "t5/model.safetensors.index.json",
            write(b'{"weight_map": {"a": "part-1.safetensors", "b": "part-1.safetensors"}}'),
            "t5/part-1.safetensors is missing",
        ),
        ("t5/model.safetensors.index.json", write(b"[]"), "is not an index of weight files"),
    ],
)
def test_damage_is_one_line(model: ModelConfig, name: str, damage: Callable[[Path], None], says: str) -> None:
    damage(Path(model.folder) / name)
    problems = [p for p in check_files(model) if says in p]
    assert len(problems) == 1, check_files(model)
    assert "\n" not in problems[0]
    assert problems[0].startswith(f"{model.folder}/")


def test_all_damage_is_reported_at_once(model: ModelConfig) -> None:
    for name in ("dit.safetensors", "vae.safetensors", "clip/model.safetensors"):
        cut(Path(model.folder) / name)
    assert len(check_files(model)) == 3


def test_a_header_that_begins_as_a_pickle_does_is_read(tmp_path: Path) -> None:
    """Its length of 128 bytes, or 384, begins with the byte that a pickle begins with."""
    path = tmp_path / "x.safetensors"
    for letters in range(64, 200):
        save_file({"x" * letters: torch.zeros(2)}, path)
        if path.read_bytes()[0] == 0x80:
            assert read_header(path)["x" * letters].shape == (2,)
            return
    raise AssertionError("no header had that length")


def test_another_size_of_model_is_named_tensor_by_tensor(model: ModelConfig) -> None:
    model = replace(model, mmdit=replace(TINY_MMDIT, mlp_ratio=2.0))
    lines = check_files(model)
    assert (
        f"{model.folder}/dit.safetensors does not match the config: double_blocks.0.img_mlp.0.weight has shape "
        in (lines[0])
    )
    assert "(128, 32), but the config requires (64, 32)" in lines[0]


def test_parts_of_a_config_that_cannot_go_together(tmp_path: Path) -> None:
    assert config_problems(ModelConfig()) == []
    model = ModelConfig(
        mmdit=MmditConfig(in_channels=60, axes_dim=[16, 55, 57]),
        vae=VaeConfig(block_out_channels=[128, 250, 512], tile_px=200),
    )
    lines = config_problems(model)
    assert [line.split("=")[0] for line in lines] == [
        "model.mmdit.axes_dim",
        "model.vae.block_out_channels",
        "model.vae.block_out_channels",
        "model.vae.tile_px",
        "model.mmdit.in_channels",
    ]
    assert "16 * 2^2 = 64" in lines[-1]
    found = check_files(replace(model, folder=str(tmp_path)))
    assert found[:5] == lines
    assert [" is missing" in line for line in found[5:]] == [True] * 4  # those are told too


def test_the_checks_start_without_torch() -> None:
    code = (
        "import sys; from opensora_launch.model import weight_files; "
        "print(sorted({'torch', 'numpy', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REFERENCE.parents[1])
    assert (done.stdout, done.stderr) == ("[]\n", "")
