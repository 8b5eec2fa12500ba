"""Weight files of other programs: pickles, headers that the library refuses, names with a common prefix."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opensora_launch.model.weight_files import check_files, convert_command
from opensora_launch.request.compose import compose
from opensora_launch.schema.config import ModelConfig
from tests.model.test_weight_files import model  # noqa: F401 a fixture


@pytest.mark.parametrize(
    ("keys", "zipped"),
    [((), True), (("state_dict",), False), (("module",), True), (("model", "state_dict"), False)],
)
def test_the_conversion_command_converts(keys: tuple[str, ...], zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / 'it\'s "mine" $HOME' / "a b.bin"
    path.parent.mkdir()
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2)}
    held: dict[str, object] = {**tensors, "epoch": 3}
    for key in reversed(keys):
        held = {"optimizer": {"lr": 1.0}, key: held}
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    command = convert_command(path).replace("python", sys.executable, 1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = load_file(path.with_suffix(".converted.safetensors"))
    assert {name: tensor.tolist() for name, tensor in got.items()} == {n: t.tolist() for n, t in tensors.items()}


def headed(path: Path, **tensors: tuple[list[int], list[int]]) -> None:
    """Write a file of fp32 tensors with these shapes and spans of bytes."""
    head = {n: {"dtype": "F32", "shape": shape, "data_offsets": span} for n, (shape, span) in tensors.items()}
    text = json.dumps(head).encode()
    size = max(span[1] for _, span in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": ([2], [0, 8]), "b": ([1], [12, 16])},  # a hole
        {"a": ([2], [0, 8]), "b": ([1], [4, 8])},  # an overlap
        {"a": ([3], [0, 8])},  # not shape x dtype
    ],
)
def test_a_header_that_the_library_refuses_is_refused(
    tensors: dict[str, tuple[list[int], list[int]]],
    model: ModelConfig,  # noqa: F811
) -> None:
    for path in (Path(model.folder) / model.vae_file, Path(model.folder) / "clip/model.safetensors"):
        headed(path, **tensors)
    first, second = check_files(model)
    assert first.startswith(f"{model.folder}/{model.vae_file} is damaged (")
    assert second.startswith(f"{model.folder}/clip/model.safetensors is damaged (")
    assert "\n" not in first


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "model.diffusion_model.", "module._orig_mod."])
def test_a_common_prefix_is_named_with_its_key(prefix: str, model: ModelConfig) -> None:  # noqa: F811
    for file, key in ((model.mmdit_file, "mmdit_prefix"), (model.vae_file, "vae_prefix")):
        path = Path(model.folder) / file
        save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path)
        assert check_files(model) == [f"{path}: every name starts with '{prefix}'; use model.{key}={prefix}"]
        model = replace(model, **{key: prefix})  # type: ignore[arg-type]
        assert check_files(model) == []
    run = compose([f"model.mmdit_prefix={prefix}", f"model.vae_prefix={prefix}"]).points[0].run
    assert (run.model.mmdit_prefix, run.model.vae_prefix) == (prefix, prefix)
