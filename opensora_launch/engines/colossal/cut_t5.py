"""Cut T5 over a tp axis."""

from typing import Any

import torch
from colossalai.shardformer import ShardConfig, ShardFormer

from opensora_launch.engines.colossal.accelerator import use_device
from opensora_launch.engines.colossal.policies import T5Policy
from opensora_launch.errors import UserError
from opensora_launch.model.text_encoders import TextEncoders
from opensora_launch.parallel.mesh import Axis


def cut_t5(encoders: TextEncoders, axis: Axis, device: torch.device) -> TextEncoders:
    """Move encoders from the CPU to the device: this rank's heads and feed-forward channels of T5, the rest whole.

    Raises UserError if the tp degree does not divide T5's heads and feed-forward.
    """
    if axis.size > 1:
        use_device(torch.device("cpu"))  # the weights are there while they are cut
        config = ShardConfig(tensor_parallel_process_group=axis.group, enable_tensor_parallelism=True)
        _check(encoders.t5.network, axis.size)
        ShardFormer(config).optimize(encoders.t5.network, policy=T5Policy(axis))
    for encoder in (encoders.t5, encoders.clip):
        encoder.network.to(device).requires_grad_(False).eval()
    return encoders


def _check(network: Any, degree: int) -> None:
    config = network.config
    if config.num_heads % degree or config.d_ff % degree:
        raise UserError(
            f"engine=colossalai cuts T5 too, and layout.tp={degree} does not divide its {config.num_heads} heads and "
            f"feed-forward of {config.d_ff}; use another layout.tp, or engine=native"
        )
