"""Who encodes the texts: one rank, or with ColossalAI a whole tp axis; T5 whole, or layer by layer where it must."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor, nn

from opensora_launch.doctor.engine_packages import must_be_installed
from opensora_launch.model.files import weight_files
from opensora_launch.model.text import TextEncoders, TextRows, load_text_encoders
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.parallel.packing import Packing
from opensora_launch.parallel.placement import Placed, StreamedBlocks
from opensora_launch.schema.config import Engine, ModelConfig

ROOM = 1.2  # free memory that whole encoders need, as a multiple of their weights
CPU = torch.device("cpu")
Target = tuple[torch.device, torch.dtype]

log = logging.getLogger("opensora_launch.worker")


@dataclass(frozen=True)
class Team:
    """The ranks that encode the texts together. The first knows which; the others help."""

    axis: Axis
    load: Callable[[], TextEncoders]

    def encode(self, texts: Sequence[str]) -> TextRows:
        """Called by the first, once at most."""
        self._tell(list(texts))
        return self.load().encode(texts)

    def dismiss(self) -> None:
        """Called by the first when no more texts come."""
        self._tell(None)

    def help(self) -> None:
        """Called by the others; returns when they are dismissed."""
        while (texts := self._tell(None)) is not None:
            self.load().encode(texts)

    def _tell(self, texts: list[str] | None) -> list[str] | None:
        told = [texts]
        if self.axis.size > 1:
            with self.axis.exchange(0):
                dist.broadcast_object_list(told, self.axis.ranks[0], group=self.axis.group)
        return told[0]


def text_team(engine: Engine, world: Axis, mesh: Mesh, model: ModelConfig, target: Target) -> Team:
    """The run's first rank alone, or with ColossalAI all of its tp axis, each with a part of T5."""
    device, dtype = target
    if engine is Engine.native:
        first = replace(world, ranks=world.ranks[:1], index=0)
        return Team(first, lambda: fitting_encoders(model, first, device, dtype))

    def load() -> TextEncoders:
        must_be_installed(engine)
        from opensora_launch.engines.colossal.text import cut_t5

        return cut_t5(load_text_encoders(model, device=CPU, dtype=dtype), mesh.tp, device)

    first_axis = replace(mesh.tp, ranks=tuple(range(mesh.tp.size)), index=world.index)
    return Team(first_axis, load)


def fitting_encoders(model: ModelConfig, axis: Axis, device: torch.device, dtype: torch.dtype) -> TextEncoders:
    """The text encoders on the device, or T5 layer by layer where it does not fit there whole."""
    if device.type == "cuda":
        weights = sum(file.stat().st_size for file in weight_files(Path(model.folder) / model.t5_folder))
        if torch.cuda.mem_get_info(device)[0] < ROOM * weights:
            log.info("T5 (%.1f GiB) does not fit on this GPU whole: its layers pass through it", weights / 2**30)
            return stream_t5(load_text_encoders(model, device=CPU, dtype=dtype), axis, device)
    return load_text_encoders(model, device=device, dtype=dtype)


def stream_t5(encoders: TextEncoders, axis: Axis, device: torch.device) -> TextEncoders:
    """Encoders loaded on the CPU, for the device: of T5's layers only two are there at a time."""
    network: Any = encoders.t5.network
    layers: list[nn.Module] = list(network.encoder.block)
    packings = [Packing.of(layer) for layer in layers]
    placed = [
        Placed(layer, packing, _packed(layer, packing, pinned=device.type == "cuda"), resident=False)
        for layer, packing in zip(layers, packings, strict=True)
    ]
    alone = replace(axis, ranks=(axis.ranks[axis.index],), index=0)
    for layer in layers:
        layer.to("meta")
    StreamedBlocks(placed, alone, device)  # held by its hooks
    for part in (network.shared, network.encoder.final_layer_norm, encoders.clip.network):
        part.to(device)
    return encoders


def _packed(layer: nn.Module, packing: Packing, *, pinned: bool) -> UInt8[Tensor, "n"]:
    state = layer.state_dict()
    flat = torch.zeros(packing.share(1), dtype=torch.uint8, pin_memory=pinned)
    for name, view in packing.views(flat).items():
        view.copy_(state[name])
    return flat
