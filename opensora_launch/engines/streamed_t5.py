"""Load the text encoders in little memory: T5 whole if it fits on the device, or else layer by layer."""

import logging
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from opensora_launch.model.text_encoders import TextEncoders, load_text_encoders
from opensora_launch.model.weight_files import weight_files
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.packing import Packing
from opensora_launch.parallel.streaming import Placed, StreamedBlocks
from opensora_launch.schema.config import ModelConfig

ROOM = 1.2  # free memory that whole encoders need, as a multiple of their weights

log = logging.getLogger("opensora_launch.worker")


def load_fitting_encoders(model: ModelConfig, axis: Axis, device: torch.device, dtype: torch.dtype) -> TextEncoders:
    """Load the text encoders on the device, with T5 streamed layer by layer if it does not fit there whole."""
    if device.type == "cuda":
        weights = sum(file.stat().st_size for file in weight_files(Path(model.folder) / model.t5_folder))
        if torch.cuda.mem_get_info(device)[0] < ROOM * weights:
            log.info("T5 (%.1f GiB) does not fit on this GPU: its layers are streamed from memory", weights / 2**30)
            return stream_t5(load_text_encoders(model, device=torch.device("cpu"), dtype=dtype), axis, device)
    return load_text_encoders(model, device=device, dtype=dtype)


def stream_t5(encoders: TextEncoders, axis: Axis, device: torch.device) -> TextEncoders:
    """Move encoders from the CPU to the device, where only two of T5's layers are held at a time."""
    network: Any = encoders.t5.network
    layers: list[nn.Module] = list(network.encoder.block)
    packings = [Packing.of(layer) for layer in layers]
    placed = [
        Placed(layer, packing, _packed(layer, packing, pinned=device.type == "cuda"), resident=False)
        for layer, packing in zip(layers, packings, strict=True)
    ]
    for layer in layers:
        layer.to("meta")
    StreamedBlocks(placed, axis.alone(), device)  # the hooks hold it
    for part in (network.shared, network.encoder.final_layer_norm, encoders.clip.network):
        part.to(device)
    return encoders


def _packed(layer: nn.Module, packing: Packing, *, pinned: bool) -> UInt8[Tensor, "n"]:
    state = layer.state_dict()
    flat = torch.zeros(packing.share(1), dtype=torch.uint8, pin_memory=pinned)
    for name, view in packing.views(flat).items():
        view.copy_(state[name])
    return flat
