"""The denoising loop: Euler steps along the mixed prediction of the needed guidance rows.

Shapes: V videos, R rows of a step, S tokens, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from opensora_launch.plan.rows import NUM_ROWS, Guidance, Row, needed_rows

StepRow = tuple[int, Row]  # index of the video in the batch, the row
Predict = Callable[[int, Float[Tensor, "V S C"], float, Sequence[StepRow]], Float[Tensor, "R S C"]]
AfterStep = Callable[[int, Float[Tensor, "V S C"]], None]  # finished steps, and the latents after them
FrameWeights = Mapping[tuple[float, ...], Float[Tensor, "frames"]]  # a row's weights of the frames, on the device


def step_rows(
    guidance: Guidance, step: int, latent_frames: int, equal_to: Sequence[tuple[int, ...]], prune: bool
) -> list[StepRow]:
    """Return every row that one step of a batch computes. equal_to[v] is for video v, as in `needed_rows`."""
    return [
        (video, row)
        for video, equal in enumerate(equal_to)
        for row in needed_rows(guidance, step, latent_frames, equal_to=equal, prune=prune)
    ]


def equal_inputs(branches: Sequence[tuple[Tensor | None, ...]]) -> tuple[int, ...]:
    """Return for each of the three branches the first one with equal tensors, compared by value."""

    def same(a: tuple[Tensor | None, ...], b: tuple[Tensor | None, ...]) -> bool:
        return all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in zip(a, b, strict=True))

    return tuple(next(i for i in range(NUM_ROWS) if same(branches[i], branches[b])) for b in range(NUM_ROWS))


def weights_on_device(steps: Sequence[Sequence[StepRow]], like: Tensor) -> FrameWeights:
    """Return the weights of all rows of all steps, in one copy: a copy in each step would make the host wait for it."""
    distinct = list(dict.fromkeys(row.frame_weights for rows in steps for _, row in rows))
    return dict(zip(distinct, torch.tensor(distinct, dtype=like.dtype, device=like.device), strict=True))


def mix(
    preds: Float[Tensor, "R S C"], rows: Sequence[StepRow], videos: int, weights: FrameWeights
) -> Float[Tensor, "V S C"]:
    """Mix each video's prediction: its rows times their weights, which may differ between frames."""
    out = preds.new_zeros(videos, *preds.shape[1:])
    for pred, (video, row) in zip(preds, rows, strict=True):
        weight = weights[row.frame_weights]
        frames = (weight.numel(), -1)
        out[video].unflatten(0, frames).addcmul_(pred.unflatten(0, frames), weight[:, None, None])
    return out


def denoise(
    latents: Float[Tensor, "V S C"],
    times: Sequence[float],
    rows_at: Callable[[int], Sequence[StepRow]],
    predict: Predict,
    *,
    first: int = 0,
    after_step: AfterStep = lambda done, latents: None,
) -> Float[Tensor, "V S C"]:
    """Take the latents from times[first] to times[-1].

    `predict` returns the model's output for the rows of a step, on whatever ranks. Times are rounded to the latents'
    dtype before the model sees them, as in the reference's bf16 state.
    """
    rows_of = [rows_at(step) for step in range(len(times) - 1)]
    weights = weights_on_device(rows_of, latents)
    for step, (t, t_next) in islice(enumerate(pairwise(times)), first, None):
        rows = rows_of[step]
        seen = torch.tensor(t, dtype=latents.dtype).item()
        preds = predict(step, latents, seen, rows)
        latents = latents + (t_next - t) * mix(preds, rows, latents.shape[0], weights)
        after_step(step + 1, latents)
    return latents
