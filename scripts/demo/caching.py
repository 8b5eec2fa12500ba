"""Ways to compute less that docs/quality.md measures and the package does not offer: they lose more for what they save.

Each is the demo model with a memory per guidance row, called in place of the model. All videos of a batch decide on
their own. Shapes: B rows of a step, S tokens, C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from opensora_launch.model.block_parts import EAGER, BlockContext
from opensora_launch.model.blocks import DoubleBlock
from opensora_launch.model.kernels import attend_alone
from opensora_launch.model.layers import timestep_embedding
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.sampling.denoise import StepRow

Key = tuple[int, int]  # video and branch


@dataclass
class CountedModel:
    """The model itself. It counts the row-forwards that it computes."""

    mmdit: MMDiT
    forwards: float = 0.0

    def __call__(self, step: int, rows: Sequence[StepRow], inputs: dict[str, Tensor]) -> Tensor:
        """Return the predictions of a step's rows; `inputs` are arguments of `MMDiT.forward`."""
        self.forwards += len(rows)
        out: Tensor = self.mmdit(**inputs)
        return out


@dataclass
class RareNegatives(CountedModel):
    """Compute rows without the text if their prediction is `every` steps old, and in the steps before `first`."""

    every: int = 2
    first: int = 4
    made: dict[Key, tuple[int, Tensor]] = field(default_factory=dict)

    def __call__(self, step: int, rows: Sequence[StepRow], inputs: dict[str, Tensor]) -> Tensor:
        keys = [(video, row.branch) for video, row in rows]
        due = [i for i, key in enumerate(keys) if self._due(step, key)]
        if due:
            made = super().__call__(step, [rows[i] for i in due], {name: x[due] for name, x in inputs.items()})
            self.made |= {keys[i]: (step, out) for i, out in zip(due, made, strict=True)}
        return torch.stack([self.made[key][1] for key in keys])

    def _due(self, step: int, key: Key) -> bool:
        return key[1] == 0 or step < self.first or key not in self.made or step - self.made[key][0] >= self.every


@dataclass
class BlockCache(CountedModel, ABC):
    """Reuse what the blocks added to a row's tokens. The ends of the model are computed in every step."""

    memory: dict[Key, dict[str, Any]] = field(default_factory=dict)
    first_block: float = 0.0  # share of a forward that a row costs although it is not computed

    @abstractmethod
    def due(self, step: int, key: Key, x: Tensor, vec: Tensor, first: Tensor) -> bool:
        """Return whether the blocks compute this row [S C]; `first` is what the first block adds to it."""

    def keep(self, memory: dict[str, Any], residual: Tensor) -> None:
        """Keep what the blocks added to a row in its memory."""
        memory["residual"] = residual

    def __call__(self, step: int, rows: Sequence[StepRow], inputs: dict[str, Tensor]) -> Tensor:
        model, keys = self.mmdit, [(video, row.branch) for video, row in rows]
        x = model.img_in(inputs["img"]) + model.cond_in(inputs["cond"])
        vec = model.time_in(timestep_embedding(inputs["timesteps"])) + model.vector_in(inputs["y_vec"])
        table = model.rotary(torch.cat([inputs["txt_ids"], inputs["img_ids"]], dim=1))
        text, shared = model.txt_in(inputs["txt"]), BlockContext(vec, model.rotary, table, attend_alone, EAGER)
        video, text = model.double_blocks[0](x.clone(), text, shared)  # the demo model has one such block
        first = video - x
        due = [i for i, key in enumerate(keys) if self.due(step, key, x[i], vec[i], first[i])]
        if due:
            part = table[0][due], table[1][due]
            context = BlockContext(vec[due], model.rotary, part, attend_alone, EAGER)
            joint = torch.cat([text[due], video[due]], dim=1)
            for block in model.single_blocks:
                joint = block(joint, context)
            for i, made in zip(due, joint[:, text.shape[1] :], strict=True):
                self.keep(self.memory.setdefault(keys[i], {}), made - x[i])
        self.forwards += len(due) + self.first_block * (len(rows) - len(due))
        out: Tensor = model.final_layer(torch.stack([self.memory[k]["residual"] for k in keys]) + x, vec)
        return out


@dataclass
class FirstBlockCache(BlockCache):
    """Compute where what the first block adds has changed by more than a threshold since it was computed last.

    The rule of ParaAttention and cache-dit: mean absolute change over mean absolute value.
    """

    threshold: float = 0.1
    first_block: float = 1 / 6

    def due(self, step: int, key: Key, x: Tensor, vec: Tensor, first: Tensor) -> bool:
        last = self.memory.get(key, {}).get("first")
        if last is not None and float((first - last).abs().mean() / last.abs().mean()) <= self.threshold:
            return False
        self.memory.setdefault(key, {})["first"] = first
        return True


@dataclass
class TeaCache(BlockCache):
    """Compute where the changes of the modulated input, added up since the last time, reach a threshold.

    Each change is first rescaled by a polynomial that is fitted to the model (Liu et al. 2024); see `TeaCacheFit`.
    """

    threshold: float = 0.1
    polynomial: tuple[float, ...] = (1.0, 0.0)  # the highest power first

    def due(self, step: int, key: Key, x: Tensor, vec: Tensor, first: Tensor) -> bool:
        block = self.mmdit.double_blocks[0]
        assert isinstance(block, DoubleBlock)
        shift, scale = block.img_mod(vec[None])[:2]
        seen = layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[0]) + shift[0]
        memory = self.memory.setdefault(key, {"sum": float("inf"), "seen": seen})
        memory["change"] = float((seen - memory["seen"]).abs().mean() / memory["seen"].abs().mean())
        memory["sum"] += float(np.polyval(self.polynomial, memory["change"]))
        memory["seen"] = seen
        if memory["sum"] < self.threshold:
            return False
        memory["sum"] = 0.0
        return True


@dataclass
class TeaCacheFit(TeaCache):
    """Compute every row, and note how the change of its modulated input goes with that of what the blocks add."""

    threshold: float = float("-inf")
    pairs: list[tuple[float, float]] = field(default_factory=list)

    def keep(self, memory: dict[str, Any], residual: Tensor) -> None:
        if "residual" in memory:
            change = float((residual - memory["residual"]).abs().mean() / memory["residual"].abs().mean())
            self.pairs.append((memory["change"], change))
        super().keep(memory, residual)

    def fitted(self) -> tuple[float, ...]:
        """Return the polynomial of degree 4 through the pairs, by least squares."""
        seen, made = np.array(self.pairs).T
        return tuple(map(float, np.polyfit(seen, made, 4)))
