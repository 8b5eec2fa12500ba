"""What every phase of a rank works with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from opensora_launch.model.block_parts import EAGER, Parts
from opensora_launch.model.kernel_choice import Kernel
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.plan import Plan
from opensora_launch.rundir import RunDir
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.worker.checkpoint import Checkpoints
from opensora_launch.worker.previews import Previews

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class RankContext:
    """The plan and this rank's means to carry it out, passed down to every phase."""

    plan: Plan
    run_dir: RunDir
    device: torch.device
    kernel: Kernel
    meshes: Mapping[Layout, Mesh]
    mesh: Mesh  # of the steps with the most rows; the ranks of its `video` axis work on the same videos
    world: Axis  # all ranks of the run
    node: Axis  # the ranks of this node that work on the same videos
    recorder: Recorder
    facts: Mapping[str, Any]  # for the records of finished videos: versions, device, attention kernel
    set_aside_bytes: int | None  # taken on the GPU before anything was loaded: by CUDA, NCCL and others
    previews: Previews | None = None  # on the first rank of a group, if there are to be any
    checkpoints: Checkpoints | None = None  # None for a comparison, which leaves nothing behind
    parts: Parts = EAGER  # what the blocks compute around attention
    images: "RankContext | None" = None  # of the image stage, if first frames are to be made

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.plan.precision]
