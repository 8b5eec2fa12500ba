"""Denoise one batch of videos on the ranks of a mesh, for `generate` and for `verify`."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from opensora_launch.parallel.sharded_model import RowInputs, ShardedModel, own_rows
from opensora_launch.plan.rows import Guidance
from opensora_launch.sampling.denoise import AfterStep, StepRow, denoise, equal_inputs, step_rows

Branch = tuple[Tensor, Tensor, Tensor | None]  # txt (T context), y_vec (vec), cond (S cond_channels)

# Video, step, rows, own rows, layout, steps -> a context that times one denoising step, as `Recorder.step` does.
StepRecord = Callable[[str, int, int, int, str, int], AbstractContextManager[None]]


@dataclass(frozen=True)
class Batch:
    """Whole videos that are denoised together; the same on every rank of the mesh."""

    name: str
    latents: Float[Tensor, "V S C"]  # the noise, or what a stopped run stored
    img_ids: Float[Tensor, "1 S A"]
    branches: Sequence[tuple[Branch, ...]]  # the three guidance branches of each video
    guidance: Guidance
    times: Sequence[float]
    latent_frames: int
    prune: bool = True


def denoise_batch(
    batch: Batch,
    model: ShardedModel,
    record: StepRecord,
    first: int = 0,
    after_step: AfterStep = lambda done, latents: None,
) -> Float[Tensor, "V S C"]:
    """Return the denoised latents, on every rank. first: how many steps the latents of the batch have been through."""
    steps = len(batch.times) - 1
    equal_to = [equal_inputs(branches) for branches in batch.branches]

    def rows_at(step: int) -> list[StepRow]:
        return step_rows(batch.guidance, step, batch.latent_frames, equal_to, batch.prune)

    def predict(step: int, latents: Tensor, t: float, rows: Sequence[StepRow]) -> Tensor:
        mesh = model.meshes[len(rows)]
        own = own_rows(mesh, len(rows))
        with record(batch.name, step, len(rows), own.stop - own.start, str(mesh.layout), steps):
            inputs = [
                RowInputs(video, t, *batch.branches[video][row.branch], batch.guidance.text_scale)
                for video, row in rows
            ]
            return model.predict(latents, batch.img_ids, inputs)

    tokens_per_frame = batch.latents.shape[1] // batch.latent_frames
    with torch.no_grad():
        return denoise(
            batch.latents, batch.times, rows_at, predict, tokens_per_frame, first=first, after_step=after_step
        )
