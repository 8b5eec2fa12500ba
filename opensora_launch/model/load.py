"""Turn a public config and public tensors into a module that computes."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from opensora_launch.errors import UserError
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.shapes import mismatches
from opensora_launch.schema.config import MmditConfig


def mmdit_config(config: Mapping[str, Any]) -> MmditConfig:
    """Read a config with the public names. Missing names take Open-Sora 2.0's values; unknown ones raise UserError."""
    known = {f.name for f in fields(MmditConfig)}
    if unknown := sorted(set(config) - known):
        names = f"the known names are {', '.join(sorted(known))}"
        raise UserError("the model config has unknown names", [f"{name}; {names}" for name in unknown])
    return MmditConfig(**config)


def load_mmdit(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MMDiT:
    """Build the diffusion transformer of `config` with exactly the weights in `tensors`.

    config: the public Open-Sora names. tensors: the keys of the public checkpoint; their dtype and device are kept.
    Raises one UserError that lists all missing names, unexpected names and wrong shapes.
    """
    with torch.device("meta"):
        module = MMDiT(mmdit_config(config))
    fill(module, tensors, "the transformer's weights")
    return module


def fill(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Give a module on the meta device its weights, for inference. Raises UserError unless they match exactly."""
    if problems := mismatches({k: tuple(v.shape) for k, v in module.state_dict().items()}, shapes_of(tensors)):
        raise UserError(f"{what} do not match the config", problems)
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    module.requires_grad_(False).eval()


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
