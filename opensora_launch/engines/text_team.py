"""The ranks that encode the texts of a run together: T5 whole if it fits on the device, or else layer by layer."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora_launch.model.text_encoders import Embedding, TextEncoders, load_text_encoders
from opensora_launch.model.weight_files import weight_files
from opensora_launch.parallel.host_memory import host_memory
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.packing import Packing
from opensora_launch.parallel.streaming import Placed, StreamedBlocks
from opensora_launch.schema.config import ModelConfig


@dataclass(frozen=True)
class TextTeam:
    """The ranks of `axis`, each with its part of the encoders. The first one knows the texts; the others help."""

    axis: Axis
    load: Callable[[], TextEncoders]

    def encode(self, texts: Sequence[str]) -> list[Embedding]:
        """Encode the texts. Only the first rank calls this, once at most."""
        self._share(list(texts))
        return self.load().encode(texts)

    def dismiss(self) -> None:
        """Let the other ranks go. Only the first rank calls this, when it has no more texts."""
        self._share(None)

    def help(self) -> None:
        """Help the first rank until it dismisses the team. All other ranks call this."""
        while (texts := self._share(None)) is not None:
            self.load().encode(texts)

    def _share(self, texts: list[str] | None) -> list[str] | None:
        """Return the first rank's texts on every rank."""
        shared = [texts]
        if self.axis.size > 1:
            with self.axis.exchange(0):
                dist.broadcast_object_list(shared, self.axis.ranks[0], group=self.axis.group)
        return shared[0]


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
    placed = [_moved_to_host(layer, device) for layer in layers]
    StreamedBlocks(layers, placed, axis.alone(), device)  # the hooks hold it
    _move_rest(network, device)
    _move_rest(encoders.clip.network, device)
    return encoders


def _moved_to_host(layer: nn.Module, device: torch.device) -> Placed:
    """Pack a layer into host memory that the device copies from, and free the layer's own."""
    packing, state = Packing.of(layer), layer.state_dict()
    flat = host_memory(packing.share(1), device)
    for name, view in packing.views(flat).items():
        view.copy_(state[name])
    layer.to("meta")
    return Placed(packing, flat, resident=False)


def _move_rest(network: nn.Module, device: torch.device) -> None:
    """Move everything to the device that is not there yet, each tensor once even if it has two names."""
    moved: dict[tuple[int, torch.Size], Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        if tensor.device == device:
            return tensor
        place = tensor.data_ptr(), tensor.shape
        if place not in moved:
            moved[place] = tensor.to(device)
        return moved[place]

    network._apply(move)
