"""Merge LoRAs into a weight when it is loaded, so that a step costs nothing more."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from safetensors import safe_open
from torch import Tensor

from opensora_launch.model.lora_files import LoraPair


def lora_change(pairs: Sequence[LoraPair], device: torch.device) -> Float[Tensor, "outputs inputs"]:
    """Return what the pairs add to a weight, in fp32: the sum of scale * up @ down, each on its rows.

    A product is always computed whole. A part of it, computed alone, could differ from it in the last bits.
    """
    change: Tensor | None = None
    for pair in pairs:
        with safe_open(pair.file, framework="pt", device=str(device)) as file:
            down, up = file.get_tensor(pair.down).float(), file.get_tensor(pair.up).float()
            alpha = float(file.get_tensor(pair.alpha)) / down.shape[0] if pair.alpha else 1.0
        product = (up @ down) * (pair.scale * alpha)
        change = product.new_zeros(pair.of, product.shape[1]) if change is None else change
        for (first, stop), part in zip(
            pair.rows, product.split([stop - first for first, stop in pair.rows]), strict=True
        ):
            change[first:stop] += part
    assert change is not None, "a weight without changes is not asked for"
    return change


def merged(weight: Shaped[Tensor, "*n"], change: Float[Tensor, "*n"], dtype: torch.dtype) -> Shaped[Tensor, "*n"]:
    """Return weight + change on the device of `change`, added in fp32 and rounded once."""
    return (weight.to(change.device).float() + change).to(dtype)
