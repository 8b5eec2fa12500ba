"""Read tensors from weight files, or draw random ones, as a dict by name."""

import logging
import pickle
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from zlib import crc32

import torch
from safetensors import safe_open
from torch import Tensor, nn

from opensora_launch.errors import UserError
from opensora_launch.model.weight_files import files_of

BIAS_STD = 0.02
LEAST_ELEMENTS = 4096  # elements of a part of a weight that show something about all of it

log = logging.getLogger("opensora_launch.worker")


def read_tensors(
    path: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    prefix: str = "",
    wanted: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of the files of its index, whose names start with `prefix`.

    The result has the names without the prefix; `wanted` selects some of them. Tensors go to the device and dtype (None
    keeps that of the file) one at a time, so there is no second copy of the whole. On a CPU, in the dtype of the file,
    they are views of the mapped file, which all ranks of a machine share: do not overwrite the file meanwhile.
    """
    keep = None if wanted is None else set(wanted)
    found: dict[str, Tensor] = {}
    for place in files_of(path):
        with safe_open(place, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118 it is not a dict
                short = name.removeprefix(prefix)
                if name.startswith(prefix) and (keep is None or short in keep):
                    found[short] = file.get_tensor(name).to(dtype=dtype)
    return found


def is_one_number(weight: Tensor) -> bool:
    """Whether all elements are equal, as in a file of the right size that was never filled. NaN equals nothing.

    Only a weight whose first and last elements are equal is read.
    """
    flat = weight.reshape(-1)
    return flat.numel() > 1 and bool(flat[0] == flat[-1]) and bool((flat == flat[0]).all())


def constant_weights(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of weights of two or more dimensions whose elements are all equal."""
    return [name for name, tensor in tensors.items() if tensor.ndim > 1 and is_one_number(tensor)]


def warn_of_constant(names: Collection[str], place: Path) -> None:
    """Log a warning about weights whose elements are all equal, if there are any; its record has them as `constant`."""
    if names:
        text = "%s: weights that are one number all over: %d, such as %s. The file may be damaged; download it again"
        log.warning(text, place, len(names), min(names), extra={"constant": (str(place), tuple(sorted(names)))})


def read_pickle(path: Path, *, device: torch.device, dtype: torch.dtype, wanted: Iterable[str]) -> dict[str, Tensor]:
    """Read the `wanted` tensors of a file by torch.save. Nothing in the pickle is run; the file is mapped, not read.

    The oldest form of such files cannot be mapped, and is read whole. Raises UserError if it holds more than tensors.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a pickle that holds only tensors; download it again") from error
    return {name: tensors[name].to(device=device, dtype=dtype) for name in wanted if name in tensors}


def random_tensors(
    module: nn.Module, *, seed: int, dtype: torch.dtype, device: torch.device, wanted: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Draw weights for a module on the meta device, for speed measurements. Activations keep their size.

    Each tensor has its own generator, seeded by `seed` and its name, so any subset can be drawn alone with the same
    result. Matrices have std 1 / sqrt(inputs), norms are 1, biases small. CPU and GPU draw different numbers.
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
