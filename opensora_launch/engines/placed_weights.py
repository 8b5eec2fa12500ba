"""Place the transformer's weights on this rank, each number read by one rank of a node only.

Every rank of a node that works on the same videos reads its share of every block and nothing else. Shares stay where
they are (`shard`), or are gathered once to whole blocks; whole blocks or shares may wait in host memory (`offload`).
"""

import mmap
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora_launch.engines.base import Tick, Transformer
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.errors import UserError
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.parallel.host_memory import host_memory, pin
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.packing import Packing
from opensora_launch.parallel.streaming import Placed, StreamedBlocks, gather_flat
from opensora_launch.plan.placement import Placement, staying
from opensora_launch.schema.config import Offload, Shard, Storage

_SHM = Path("/dev/shm")


def place_transformer(
    source: WeightSource, placement: Placement, node: Axis, everywhere: Axis, tick: Tick
) -> Transformer:
    """Build the transformer with its weights placed. The axes hold the ranks of its videos: on this node, on all nodes.

    `tick` gets the bytes that were read, after each block. All ranks of the axes call this together.
    Raises UserError if the files do not match the config.
    """
    source.check()
    with torch.device("meta"):
        module = MMDiT(source.model.mmdit)
    blocks = blocks_of(module)
    outside = [n for n in module.state_dict() if not n.startswith(tuple(blocks))]
    module.load_state_dict(source.on_device(module, outside), strict=False, assign=True)
    loading = Loading(source, everywhere if placement.shard is Shard.all else node, tick)
    axis, fp8 = loading.axis, placement.storage is Storage.fp8
    packings = {prefix: Packing.of(block, source.dtype, fp8=fp8) for prefix, block in blocks.items()}
    stays = dict(zip(blocks, staying(len(blocks), placement), strict=True))
    shares = loading.wholes({prefix: packing for prefix, packing in packings.items() if stays[prefix]})
    away = {prefix: packing for prefix, packing in packings.items() if not stays[prefix]}
    if placement.shard is not Shard.none:
        in_host = placement.offload is Offload.host
        shares |= {prefix: loading.share(prefix, packing, in_host=in_host) for prefix, packing in away.items()}
    elif away:
        shares, axis = shares | loading.host_copy(away), axis.alone()
    store = None
    if placement.streamed:
        placed = [Placed(packings[prefix], shares[prefix], stays[prefix]) for prefix in blocks]
        store = StreamedBlocks([*blocks.values()], placed, axis, source.device)
    else:
        for prefix, block in blocks.items():
            block.load_state_dict(packings[prefix].views(shares[prefix]), assign=True)
    module.requires_grad_(False).eval()
    return Transformer(module, store)


def blocks_of(module: MMDiT) -> dict[str, nn.Module]:
    """Return the blocks in the order of use, by the prefix of their tensors' names."""
    named = {"double_blocks": module.double_blocks, "single_blocks": module.single_blocks}
    return {f"{name}.{i}.": block for name, blocks in named.items() for i, block in enumerate(blocks)}


@dataclass(frozen=True)
class Loading:
    """Reads packed blocks; each number is read once, by one rank of the axis."""

    source: WeightSource
    axis: Axis
    tick: Tick

    def share(self, prefix: str, packing: Packing, *, in_host: bool) -> Tensor:
        """Read this rank's share of a block into (pinned) host memory, or to the device."""
        nbytes, device = packing.share(self.axis.size), self.source.device
        share = host_memory(nbytes, device) if in_host else torch.empty(nbytes, dtype=torch.uint8, device=device)
        self._read(prefix, packing, share)
        return share

    def wholes(self, packings: Mapping[str, Packing]) -> dict[str, Tensor]:
        """Read this rank's shares without waiting for other ranks, and then gather the wholes block by block."""
        shares = {prefix: self.share(prefix, packing, in_host=False) for prefix, packing in packings.items()}
        if self.axis.size == 1:
            return shares
        wholes = {}
        for prefix in packings:
            share = shares.pop(prefix)
            wholes[prefix] = share.new_empty(share.numel() * self.axis.size)
            gather_flat(self.axis, share, wholes[prefix])()
        return wholes

    def host_copy(self, packings: Mapping[str, Packing]) -> dict[str, Tensor]:
        """Read blocks into memory that the ranks of a node share: each rank writes its share, and maps the whole."""
        axis = self.axis
        sizes = [packing.share(axis.size) * axis.size for packing in packings.values()]
        memory = _shared_memory(axis, sum(sizes))
        flats = dict(zip(packings, torch.frombuffer(memory, dtype=torch.uint8).split(sizes), strict=True))
        for prefix, flat in flats.items():
            self._read(prefix, packings[prefix], flat.view(axis.size, -1)[axis.index])
        with axis.exchange(0):
            dist.barrier(group=axis.group)
        pin(memory, self.source.device)
        return flats

    def _read(self, prefix: str, packing: Packing, into: Tensor) -> None:
        shapes = {entry.name: entry.shape for entry in packing.entries}
        elements = packing.read_share(self.axis.index, self.axis.size, self.source.range_reader(prefix, shapes), into)
        self.tick(elements * self.source.number_bytes)


def _shared_memory(axis: Axis, nbytes: int) -> mmap.mmap:
    """Make memory of so many bytes that all ranks of the axis map. It vanishes with the last process that maps it.

    Raises UserError on all ranks if /dev/shm is too small.
    """
    made: list[str | None] = [None]
    if axis.index == 0:
        free = shutil.disk_usage(_SHM).free
        if free < nbytes:
            need = f"placement.offload=host needs {nbytes / 2**30:.1f} GiB in {_SHM}, which has {free / 2**30:.1f} free"
            made = [f"{need}; enlarge it (docker: --shm-size), or use placement.shard=node"]
        else:
            path = _SHM / f"opensora-launch-{os.getpid()}"
            with path.open("wb") as file:
                file.truncate(nbytes)
            made = [str(path)]
    if axis.size > 1:
        dist.broadcast_object_list(made, axis.ranks[0], group=axis.group)
    assert made[0] is not None
    path = Path(made[0])
    if not path.is_absolute():
        raise UserError(made[0])
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), nbytes)
    if axis.size > 1:
        dist.barrier(group=axis.group)
    if axis.index == 0:
        path.unlink()
    return memory
