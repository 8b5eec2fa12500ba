"""The diffusion transformer's weights on this rank: read once a node, placed as the plan says.

Every rank of a node that works on the same videos reads its share of every block and nothing else. Shares stay
where they are (`shard`), or are gathered once to whole blocks; whole blocks or shares may wait in host memory
(`offload`).
"""

import mmap
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from opensora_launch.config import Init, ModelConfig, Offload, PlacementConfig, Shard
from opensora_launch.errors import UserError
from opensora_launch.model.files import read_shapes
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.shapes import mismatches, mmdit_shapes
from opensora_launch.model.weights import random_tensor, random_tensors, read_tensors
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.placement import FlatLayout, ReadRange, StreamedBlocks, gather_flat, read_share

SHM = Path("/dev/shm")
Tick = Callable[[], None]


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

    @property
    def path(self) -> Path:
        return Path(self.model.folder) / self.model.mmdit_file

    def check(self) -> None:
        """Raises UserError if the file has other tensors than the config."""
        if self.model.init is Init.random:
            return
        if wrong := mismatches(mmdit_shapes(self.model.mmdit), read_shapes(self.path)):
            raise UserError(f"{self.path} does not match the config", wrong)

    def whole(self, empty: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors that every rank holds."""
        if self.model.init is Init.random:
            seed = self.model.init_seed
            return random_tensors(empty, seed=seed, dtype=self.dtype, device=self.device, wanted=names)
        return read_tensors(self.path, device=self.device, dtype=self.dtype, wanted=names)

    def part(self, prefix: str, shapes: dict[str, tuple[int, ...]]) -> ReadRange:
        """Reads elements of a block's tensors; from a file only the rows that hold them."""

        def drawn(name: str, first: int, last: int) -> Tensor:
            shape = torch.Size(shapes[name])
            return random_tensor(prefix + name, shape, self.model.init_seed, self.device).reshape(-1)[first:last]

        def stored(name: str, first: int, last: int) -> Tensor:
            shape = shapes[name]
            row = torch.Size(shape[1:]).numel()
            top = first // row
            with safe_open(self.path, framework="pt") as file:
                rows: Tensor = file.get_slice(prefix + name)[top : -(-last // row)]
            return rows.reshape(-1)[first - top * row : last - top * row]

        return drawn if self.model.init is Init.random else stored


def load_transformer(source: Source, placement: PlacementConfig, axes: tuple[Axis, Axis], tick: Tick) -> Transformer:
    """The transformer with its weights placed. axes: our ranks of this node, and on all nodes.

    `tick` is called after every block, to show that loading goes on. All ranks of the axes call this together.
    """
    source.check()
    node, everywhere = axes
    with torch.device("meta"):
        module = MMDiT(source.model.mmdit)
    blocks = _blocks(module)
    outside = [n for n in module.state_dict() if not n.startswith(tuple(blocks))]
    module.load_state_dict(source.whole(module, outside), strict=False, assign=True)
    axis = everywhere if placement.shard is Shard.all else node
    offload = placement.offload is Offload.host
    if placement.shard is Shard.none and not offload:
        _load_whole(source, blocks, axis, tick)
        store = None
    else:
        layouts = [FlatLayout.of(block) for block in blocks.values()]
        if placement.shard is Shard.none:
            shares, axis = _host_copy(source, blocks, layouts, axis, tick), _alone(axis)
        else:
            shares = [_share(source, p, x, axis, in_host=offload) for p, x in _each(blocks, layouts, tick)]
        store = StreamedBlocks(list(blocks.values()), shares, axis, source.device)
    module.requires_grad_(False).eval()
    return Transformer(module, store)


def _blocks(module: MMDiT) -> dict[str, nn.Module]:
    """In the order of use, by the prefix of their tensors' names."""
    named = {"double_blocks": module.double_blocks, "single_blocks": module.single_blocks}
    return {f"{name}.{i}.": block for name, blocks in named.items() for i, block in enumerate(blocks)}


def _each(blocks: dict[str, nn.Module], layouts: list[FlatLayout], tick: Tick) -> Iterable[tuple[str, FlatLayout]]:
    for prefix, layout in zip(blocks, layouts, strict=True):
        yield prefix, layout
        tick()


def _share(source: Source, prefix: str, layout: FlatLayout, axis: Axis, *, in_host: bool) -> Tensor:
    pinned = in_host and source.device.type == "cuda"
    device = "cpu" if in_host else source.device
    share = torch.empty(layout.share(axis.size), dtype=source.dtype, device=device, pin_memory=pinned)
    read_share(layout, axis.index, axis.size, source.part(prefix, _shapes(layout)), share)
    return share


def _shapes(layout: FlatLayout) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape, _ in layout.tensors}


def _load_whole(source: Source, blocks: dict[str, nn.Module], axis: Axis, tick: Tick) -> None:
    """Read all our shares, which waits for nobody; then gather block by block, and keep the result."""
    layouts = [FlatLayout.of(block) for block in blocks.values()]
    shares = [_share(source, prefix, layout, axis, in_host=False) for prefix, layout in _each(blocks, layouts, tick)]
    for block, layout in zip(blocks.values(), layouts, strict=True):
        share = shares.pop(0)
        flat = share if axis.size == 1 else share.new_empty(share.numel() * axis.size)
        if axis.size > 1:
            gather_flat(axis, share, flat)()
        block.load_state_dict(layout.views(flat), assign=True)


def _alone(axis: Axis) -> Axis:
    return replace(axis, ranks=(axis.ranks[axis.index],), index=0)


def _host_copy(
    source: Source, blocks: dict[str, nn.Module], layouts: list[FlatLayout], axis: Axis, tick: Tick
) -> list[Tensor]:
    """All blocks in memory that the ranks of a node share: each writes what it reads, and maps the whole."""
    spans = [layout.share(axis.size) * axis.size for layout in layouts]
    itemsize = torch.empty(0, dtype=source.dtype).element_size()
    whole = _shared_memory(axis, sum(spans) * itemsize).view(source.dtype)
    flats = list(whole.split(spans))
    for (prefix, layout), flat in zip(_each(blocks, layouts, tick), flats, strict=True):
        share = flat.view(axis.size, -1)[axis.index]
        read_share(layout, axis.index, axis.size, source.part(prefix, _shapes(layout)), share)
    with axis.exchange(0):
        dist.barrier(group=axis.group)
    if source.device.type == "cuda":
        status = torch.cuda.cudart().cudaHostRegister(whole.data_ptr(), whole.numel() * itemsize, 0)
        assert int(status) == 0, f"the host copy could not be pinned: cudaError {status}"
    return [flat[: layout.size] for flat, layout in zip(flats, layouts, strict=True)]


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
