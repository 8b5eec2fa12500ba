"""The transformer as the worker runs it on one rank: placed, streamed, and called through ShardedModel."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from _gpu.setting import Setting
from opensora_launch.engines.base import Transformer
from opensora_launch.engines.choice import choose_engine
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model.kernel_choice import Kernel, choose_kernel
from opensora_launch.parallel.mesh import Axis, Groups, Mesh, build_meshes, node_axis
from opensora_launch.parallel.sharded_model import RowInputs, ShardedModel
from opensora_launch.plan.geometry import Geometry
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.sampling.latents import position_ids
from opensora_launch.schema.config import Engine, ModelConfig
from opensora_launch.worker.process_group import BACKSTOP, join
from opensora_launch.worker.rank import Rank

ROWS = (1, 2, 3)
TIME = 0.5  # a timestep; any costs the same


def unrecorded(*_: Any) -> AbstractContextManager[None]:
    """Record nothing about an exchange."""
    return nullcontext()


def join_alone() -> None:
    """Make the process group of a single rank, if there is none yet."""
    if not dist.is_initialized():
        join(Rank(0, 0, 1, 1))


@dataclass(frozen=True)
class Place:
    """The place of rank 0 in a layout of all ranks of the group. `node`: the ranks that may share the weights."""

    mesh: Mesh
    node: Axis

    @classmethod
    def of(cls, layout: Layout) -> "Place":
        """Make the layout's groups, each once, as the worker does."""
        groups = Groups(BACKSTOP)
        mesh = build_meshes([layout], 0, groups, unrecorded)[layout]
        return cls(mesh, node_axis(mesh, layout.ranks, layout.ranks, groups))


def load_transformer(setting: Setting, model: ModelConfig, placement: Placement, place: Place) -> Transformer:
    """Load the weights as the worker does."""
    source = WeightSource(model, setting.device, setting.dtype)
    engine = choose_engine(Engine.native)
    return engine.load_transformer(source, placement, place.node, place.mesh, lambda nbytes: None)


def kernel_of(setting: Setting, model: ModelConfig) -> Kernel:
    """Return the attention kernel that the product takes here."""
    head_dim = model.mmdit.hidden_size // model.mmdit.num_heads
    return choose_kernel("auto", device=setting.device, dtype=setting.dtype, head_dim=head_dim)


@dataclass(frozen=True)
class Inputs:
    """Random inputs of one video: its latents, and those of its guidance rows."""

    latents: Tensor
    img_ids: Tensor
    rows: tuple[RowInputs, ...]

    @classmethod
    def of(cls, setting: Setting, model: ModelConfig, shape: Geometry) -> "Inputs":
        mmdit, patch = model.mmdit, model.mmdit.patch_size
        tokens = shape.grid.video_tokens
        rows = tuple(
            RowInputs(
                video=0,
                t=TIME,
                txt=setting.random(shape.text_tokens, mmdit.context_in_dim),
                y_vec=setting.random(mmdit.vec_in_dim),
                cond=setting.random(tokens, mmdit.in_channels + patch**2, dtype=torch.float32),
                guidance=1.0,
            )
            for _ in ROWS
        )
        return cls(
            latents=setting.random(1, tokens, mmdit.in_channels, dtype=torch.float32),
            img_ids=position_ids(
                shape.latent_frames, shape.latent_height // patch, shape.latent_width // patch, setting.device
            ),
            rows=rows,
        )


@dataclass(frozen=True)
class Stepper:
    """One denoising step of one video, without the mixing of its rows, which costs nothing beside it."""

    model: ShardedModel
    inputs: Inputs

    @classmethod
    def of(
        cls, setting: Setting, model: ModelConfig, transformer: Transformer, place: Place, inputs: Inputs
    ) -> "Stepper":
        sit_out = transformer.blocks.pass_through if transformer.blocks else None
        kernel = kernel_of(setting, model).call
        return cls(ShardedModel(transformer.module.forward, kernel, dict.fromkeys(ROWS, place.mesh), sit_out), inputs)

    def __call__(self, rows: int = 1) -> Tensor:
        return self.model.predict(self.inputs.latents, self.inputs.img_ids, self.inputs.rows[:rows])


def finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
