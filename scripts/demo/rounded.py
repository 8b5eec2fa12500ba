"""Round the demo model's weights as the package stores them in fp8."""

from collections.abc import Sequence

from torch import nn

from opensora_launch.parallel.packing import fp8_numbers, to_fp8


def round_weights(blocks: Sequence[nn.Module]) -> None:
    """Round the matrices of the transformer's blocks, in their place, as `placement.storage=fp8` does."""
    for parameter in (p for block in blocks for p in block.parameters() if p.ndim == 2):
        numbers, powers = fp8_numbers(to_fp8(parameter.data).reshape(-1), tuple(parameter.shape))
        parameter.data = numbers.to(parameter.dtype) * powers.to(parameter.dtype)
