"""The diffusion transformer's weights on this rank: read once a node, placed as the plan says.

Every rank of a node that works on the same videos reads its share of every block and nothing else. Shares stay
where they are (`shard`), or are gathered once to whole blocks; whole blocks or shares may wait in host memory
(`offload`).
"""

import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from opensora_launch.errors import UserError
from opensora_launch.model.files import DTYPE_BYTES, Stored, read_stored, stored_problems
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.shapes import mmdit_shapes
from opensora_launch.model.weights import random_tensor, random_tensors, read_tensors
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.packing import Packing, ReadRange
from opensora_launch.parallel.placement import Placed, StreamedBlocks, gather_flat
from opensora_launch.plan.placement import Placement, staying
from opensora_launch.schema.config import Init, ModelConfig, Offload, Shard, Storage

SHM = Path("/dev/shm")
Tick = Callable[[int], None]  # gets bytes that were read


@dataclass(frozen=True)
class Transformer:
    module: MMDiT
    blocks: StreamedBlocks | None  # None where the weights stay on the device


@dataclass(frozen=True)
class Source:
    """Where the weights come from, and as what."""

    model: ModelConfig
    device: torch.device
    dtype: torch.dtype
    prefix: str = ""  # of the tensors' names in the file, which may hold others too

    @property
    def path(self) -> Path:
        return Path(self.model.folder) / self.model.mmdit_file

    @cached_property
    def stored(self) -> Mapping[str, Stored]:
        """The tensors of the checkpoint's files, without the prefix; none where weights are random."""
        if self.model.init is Init.random:
            return {}
        every = read_stored(self.path)
        return {name.removeprefix(self.prefix): x for name, x in every.items() if name.startswith(self.prefix)}

    @property
    def nbytes(self) -> int:
        """Of all weights as they are read."""
        drawn = sum(torch.Size(shape).numel() for shape in mmdit_shapes(self.model.mmdit).values())
        return self.number_bytes * drawn

    @property
    def number_bytes(self) -> int:
        """Of a number as it is read."""
        return DTYPE_BYTES[next(iter(self.stored.values())).dtype] if self.stored else self.dtype.itemsize

    def check(self) -> None:
        """Raises UserError if the files cannot be read, or have other tensors than the config."""
        if self.model.init is Init.random:
            return
        if wrong := stored_problems(self.path, self.stored, mmdit_shapes(self.model.mmdit)):
            raise UserError("the transformer's weights cannot be loaded", wrong)

    def whole(self, empty: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors that every rank holds."""
        if self.model.init is Init.random:
            seed = self.model.init_seed
            return random_tensors(empty, seed=seed, dtype=self.dtype, device=self.device, wanted=names)
        return read_tensors(self.path, device=self.device, dtype=self.dtype, prefix=self.prefix, wanted=names)

    def part(self, prefix: str, shapes: dict[str, tuple[int, ...]]) -> ReadRange:
        """Reads elements of a block's tensors; from a file only the rows that hold them."""

        def drawn(name: str, first: int, last: int) -> Tensor:
            shape = torch.Size(shapes[name])
            return random_tensor(prefix + name, shape, self.model.init_seed, self.device).reshape(-1)[first:last]

        def read(name: str, first: int, last: int) -> Tensor:
            shape = shapes[name]
            row = torch.Size(shape[1:]).numel()
            top = first // row
            with safe_open(self.stored[prefix + name].file, framework="pt") as file:
                rows: Tensor = file.get_slice(self.prefix + prefix + name)[top : -(-last // row)]
            return rows.reshape(-1)[first - top * row : last - top * row]

        return drawn if self.model.init is Init.random else read


def load_transformer(source: Source, placement: Placement, axes: tuple[Axis, Axis], tick: Tick) -> Transformer:
    """The transformer with its weights placed. axes: our ranks of this node, and on all nodes.

    `tick` gets the bytes that were read, after every block. All ranks of the axes call this together.
    """
    source.check()
    node, everywhere = axes
    with torch.device("meta"):
        module = MMDiT(source.model.mmdit)
    blocks = blocks_of(module)
    outside = [n for n in module.state_dict() if not n.startswith(tuple(blocks))]
    module.load_state_dict(source.whole(module, outside), strict=False, assign=True)
    loading = Loading(source, everywhere if placement.shard is Shard.all else node, tick)
    packings = {
        prefix: Packing.of(block, source.dtype, fp8=placement.storage is Storage.fp8)
        for prefix, block in blocks.items()
    }
    stay = staying(len(blocks), placement)
    axis = loading.axis
    shares = loading.wholes({prefix: packings[prefix] for prefix, stays in zip(blocks, stay, strict=True) if stays})
    away = {prefix: packings[prefix] for prefix in blocks if prefix not in shares}
    if placement.shard is not Shard.none:
        in_host = placement.offload is Offload.host
        shares |= {prefix: loading.share(prefix, packing, in_host=in_host) for prefix, packing in away.items()}
    elif away:
        shares, axis = shares | loading.host_copy(away), _alone(axis)
    store = None
    if placement.streamed:
        placed = [Placed(b, packings[p], shares[p], stays) for (p, b), stays in zip(blocks.items(), stay, strict=True)]
        store = StreamedBlocks(placed, axis, source.device)
    else:
        for prefix, block in blocks.items():
            block.load_state_dict(packings[prefix].views(shares[prefix]), assign=True)
    module.requires_grad_(False).eval()
    return Transformer(module, store)


def blocks_of(module: MMDiT) -> dict[str, nn.Module]:
    """In the order of use, by the prefix of their tensors' names."""
    named = {"double_blocks": module.double_blocks, "single_blocks": module.single_blocks}
    return {f"{name}.{i}.": block for name, blocks in named.items() for i, block in enumerate(blocks)}


def _alone(axis: Axis) -> Axis:
    return replace(axis, ranks=(axis.ranks[axis.index],), index=0)


@dataclass(frozen=True)
class Loading:
    """Reads packed blocks, each number once by one rank of the axis."""

    source: Source
    axis: Axis
    tick: Tick

    def share(self, prefix: str, packing: Packing, *, in_host: bool) -> Tensor:
        """This rank's, read into (pinned) host memory or to the device."""
        pinned = in_host and self.source.device.type == "cuda"
        device = "cpu" if in_host else self.source.device
        share = torch.empty(packing.share(self.axis.size), dtype=torch.uint8, device=device, pin_memory=pinned)
        self._read(prefix, packing, share)
        return share

    def wholes(self, packings: Mapping[str, Packing]) -> dict[str, Tensor]:
        """Read all our shares, which waits for nobody; then gather block by block."""
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
        """Blocks in memory that the ranks of a node share: each writes what it reads, and maps the whole."""
        axis = self.axis
        spans = [packing.share(axis.size) * axis.size for packing in packings.values()]
        whole = _shared_memory(axis, sum(spans))
        flats = dict(zip(packings, whole.split(spans), strict=True))
        for prefix, flat in flats.items():
            self._read(prefix, packings[prefix], flat.view(axis.size, -1)[axis.index])
        with axis.exchange(0):
            dist.barrier(group=axis.group)
        if self.source.device.type == "cuda":
            status = torch.cuda.cudart().cudaHostRegister(whole.data_ptr(), whole.numel(), 0)
            assert int(status) == 0, f"the host copy could not be pinned: cudaError {status}"
        return flats

    def _read(self, prefix: str, packing: Packing, into: Tensor) -> None:
        shapes = {entry.name: entry.shape for entry in packing.entries}
        elements = packing.read_share(self.axis.index, self.axis.size, self.source.part(prefix, shapes), into)
        self.tick(elements * self.source.number_bytes)


def _shared_memory(axis: Axis, nbytes: int) -> Tensor:
    """uint8 [nbytes], the same memory on all ranks of the axis; it is gone with the last process that maps it."""
    made: list[str | None] = [None]
    if axis.index == 0:
        free = shutil.disk_usage(SHM).free
        if free < nbytes:
            need = f"placement.offload=host needs {nbytes / 2**30:.1f} GiB in {SHM}, which has {free / 2**30:.1f} free"
            made = [f"{need}; enlarge it (docker: --shm-size), or use placement.shard=node"]
        else:
            path = SHM / f"opensora-launch-{os.getpid()}"
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
    return torch.frombuffer(memory, dtype=torch.uint8)
