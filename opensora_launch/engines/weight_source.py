"""Read the transformer's weights from a checkpoint, or draw random ones: whole tensors, or any part of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from opensora_launch.errors import UserError
from opensora_launch.model.lora import lora_change, merged
from opensora_launch.model.lora_files import LoraPair, read_loras
from opensora_launch.model.shapes import mmdit_shapes
from opensora_launch.model.weight_files import DTYPE_BYTES, Stored, read_stored, stored_problems, without_prefix
from opensora_launch.model.weights import (
    LEAST_ELEMENTS,
    constant_weights,
    is_one_number,
    random_tensor,
    random_tensors,
    read_tensors,
)
from opensora_launch.parallel.packing import ReadRange
from opensora_launch.schema.config import Init, ModelConfig

ReadTensor = Callable[[str], Tensor]  # name -> the whole tensor


@dataclass(frozen=True)
class WeightSource:
    """The checkpoint (or seed) of `model`, with the device and dtype that the transformer computes in."""

    model: ModelConfig
    device: torch.device
    dtype: torch.dtype
    constant: set[str] = field(default_factory=set, compare=False)  # weights found to hold one number each, so far

    @property
    def path(self) -> Path:
        return Path(self.model.folder) / self.model.mmdit_file

    @property
    def prefix(self) -> str:
        """What starts the names of its tensors in the file, which may hold others too."""
        return self.model.mmdit_prefix

    @cached_property
    def stored(self) -> Mapping[str, Stored]:
        """The tensors in the files of the checkpoint, without the prefix; empty if weights are random."""
        if self.model.init is Init.random:
            return {}
        return without_prefix(read_stored(self.path), self.prefix)

    @cached_property
    def loras(self) -> Mapping[str, tuple[LoraPair, ...]]:
        """What changes the weights while they are loaded, by the name of the weight."""
        return read_loras(self.model)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they are read."""
        return self.number_bytes * sum(torch.Size(shape).numel() for shape in mmdit_shapes(self.model.mmdit).values())

    @property
    def number_bytes(self) -> int:
        """Bytes of one number as it is read."""
        return DTYPE_BYTES[next(iter(self.stored.values())).dtype] if self.stored else self.dtype.itemsize

    def check(self) -> None:
        """Raise UserError if the files cannot be read or do not fit the config, or a LoRA does not fit the model."""
        _ = self.loras  # reads their headers
        if self.model.init is Init.random:
            return
        if wrong := stored_problems(self.path, self.stored, mmdit_shapes(self.model.mmdit)):
            raise UserError("the transformer's weights cannot be loaded", wrong)

    def on_device(self, empty: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
        """Return whole tensors of `empty` (a module on the meta device) on the device, in the dtype."""
        names = set(names)
        changed = names & self.loras.keys()
        read = self.reader() if changed else None
        with_lora = {name: read(name) for name in changed} if read else {}
        names -= changed
        if self.model.init is Init.random:
            seed = self.model.init_seed
            found = random_tensors(empty, seed=seed, dtype=self.dtype, device=self.device, wanted=names)
        else:
            found = read_tensors(self.path, device=self.device, dtype=self.dtype, prefix=self.prefix, wanted=names)
            self.constant.update(constant_weights(found))
        return found | with_lora

    def reader(self) -> ReadTensor:
        """Return a reader of whole tensors: of the files, mapped and not yet read; or random ones in fp32."""
        if self.model.init is Init.checkpoint:
            found = read_tensors(self.path, device=torch.device("cpu"), prefix=self.prefix)
            self.constant.update(constant_weights(found))
            return lambda name: self._with_lora(name, found[name])
        shapes = {name: torch.Size(shape) for name, shape in mmdit_shapes(self.model.mmdit).items()}
        return lambda name: self._with_lora(name, random_tensor(name, shapes[name], self.model.init_seed, self.device))

    def range_reader(self, block: str, shapes: Mapping[str, tuple[int, ...]]) -> ReadRange:
        """Return a reader of parts of a block's tensors, which reads only the lines of a file that hold the part."""

        def draw(name: str, first: int, last: int) -> Tensor:
            shape = torch.Size(shapes[name])
            return random_tensor(block + name, shape, self.model.init_seed, self.device).reshape(-1)[first:last]

        def read(name: str, first: int, last: int) -> Tensor:
            line = torch.Size(shapes[name][1:]).numel()
            top = first // line
            with safe_open(self.stored[block + name].file, framework="pt") as file:
                lines: Tensor = file.get_slice(self.prefix + block + name)[top : -(-last // line)]
            part = lines.reshape(-1)[first - top * line : last - top * line]
            telling = part.numel() >= min(LEAST_ELEMENTS, torch.Size(shapes[name]).numel())
            if len(shapes[name]) > 1 and telling and is_one_number(part):
                self.constant.add(block + name)
            return part

        stored = draw if self.model.init is Init.random else read
        return lambda name, first, last: self._with_lora(block + name, stored(name, first, last), first)

    def _with_lora(self, name: str, part: Tensor, first: int = 0) -> Tensor:
        """Return elements of the weight, of which the first is number `first`, with the changes by LoRAs."""
        if name not in self.loras:
            return part
        change = lora_change(self.loras[name], self.device).reshape(-1)[first : first + part.numel()]
        return merged(part, change.view(part.shape), self.dtype)
