"""From a public config and public tensors to a module that computes."""

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
    """The config with the public names; an unknown name is an error, a missing one has Open-Sora 2.0's value."""
    known = {f.name for f in fields(MmditConfig)}
    if unknown := sorted(set(config) - known):
        raise UserError("the model config has unknown names", [f"{n}; known are {sorted(known)}" for n in unknown])
    return MmditConfig(**config)


def load_mmdit(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MMDiT:
    """The diffusion transformer of `config` with exactly the weights in `tensors`, which it takes as they are.

    config: the public Open-Sora names. tensors: the public checkpoint's keys; dtype and device are kept.
    Missing or unexpected names and wrong shapes are one UserError that lists them.
    """
    with torch.device("meta"):
        module = MMDiT(mmdit_config(config))
    fill(module, tensors, "the transformer's weights")
    return module


def fill(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Give a meta-initialised module its weights, for inference; UserError if they do not match exactly."""
    if problems := mismatches({k: tuple(v.shape) for k, v in module.state_dict().items()}, shapes(tensors)):
        raise UserError(f"{what} do not match the config", problems)
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    module.requires_grad_(False).eval()


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
