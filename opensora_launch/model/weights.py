"""Tensors out of weight files, and random ones, as a dict of names."""

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import torch
from safetensors import safe_open
from torch import Tensor, nn

from opensora_launch.errors import UserError
from opensora_launch.model.files import files_of

BIAS_STD = 0.02


def read_tensors(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    prefix: str = "",
    wanted: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of the files of its index, whose names start with `prefix`, without it; or
    those of `wanted` only.

    One tensor after another goes to the device and dtype (None keeps the file's), so there is no second copy of the
    whole. On a CPU, in the file's dtype, they are views of the mapped file, which all ranks of a machine share; so the
    file must not be written over while they live.
    """
    keep = None if wanted is None else set(wanted)
    found: dict[str, Tensor] = {}
    for place in files_of(path):
        with safe_open(place, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118 it is no dict
                short = name.removeprefix(prefix)
                if name.startswith(prefix) and (keep is None or short in keep):
                    found[short] = in_dtype(file.get_tensor(name), dtype)
    return found


def in_dtype(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def read_pickle(path: Path, *, device: torch.device, dtype: torch.dtype, wanted: Iterable[str]) -> dict[str, Tensor]:
    """The `wanted` tensors of a file of torch.save. Nothing in the pickle is run; the file is mapped, not read.

    The oldest form of such files cannot be mapped, and is read whole. UserError if there is more in it than tensors.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a pickle of tensors alone; download it again") from error
    return {name: tensors[name].to(device=device, dtype=dtype) for name in wanted if name in tensors}


def random_tensors(
    module: nn.Module, *, seed: int, dtype: torch.dtype, device: torch.device, wanted: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Weights for a module on the meta device, such that activations keep their size; for speed measurements.

    Every tensor has a generator of its own, seeded by `seed` and its name: any part of them can be made alone and is
    the same. Matrices have std 1 / sqrt(inputs), norms are 1, biases small. Drawn on `device`, so CPU and GPU differ.
    """
    state = module.state_dict()
    names = state if wanted is None else wanted
    return {name: random_tensor(name, state[name].shape, seed, device).to(dtype) for name in names}


def random_tensor(name: str, shape: torch.Size, seed: int, device: torch.device) -> Tensor:
    if len(shape) == 1 and not name.endswith(".bias"):
        return torch.ones(shape, device=device)
    generator = torch.Generator(device).manual_seed(crc32(f"{seed}:{name}".encode()))
    std = BIAS_STD if len(shape) == 1 else (shape.numel() / shape[0]) ** -0.5
    return torch.randn(shape, generator=generator, device=device) * std
