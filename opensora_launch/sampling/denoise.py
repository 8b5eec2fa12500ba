"""The denoising loop: Euler steps along the mixed prediction of the needed guidance rows."""

from collections.abc import Callable, Sequence
from itertools import islice, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from opensora_launch.plan.rows import NUM_ROWS, Guidance, Row, needed_rows

StepRow = tuple[int, Row]  # index of the video in the batch, the row
Predict = Callable[[int, Float[Tensor, "V S C"], float, Sequence[StepRow]], Float[Tensor, "R S C"]]
AfterStep = Callable[[int, Float[Tensor, "V S C"]], None]  # steps done, the latents after them


def step_rows(
    guidance: Guidance, step: int, latent_frames: int, equal_to: Sequence[tuple[int, ...]], prune: bool
) -> list[StepRow]:
    """Every row that one step of a batch computes. equal_to[v]: see `needed_rows`, for video v."""
    return [
        (video, row)
        for video, equal in enumerate(equal_to)
        for row in needed_rows(guidance, step, latent_frames, equal_to=equal, prune=prune)
    ]


def equal_inputs(branches: Sequence[tuple[Tensor | None, ...]]) -> tuple[int, ...]:
    """The first branch with the same tensors, for each of the three branches, compared by value."""

    def same(a: tuple[Tensor | None, ...], b: tuple[Tensor | None, ...]) -> bool:
        return all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in zip(a, b, strict=True))

    return tuple(next(i for i in range(NUM_ROWS) if same(branches[i], branches[b])) for b in range(NUM_ROWS))


def mix(
    preds: Float[Tensor, "R S C"], rows: Sequence[StepRow], videos: int, tokens_per_frame: int
) -> Float[Tensor, "V S C"]:
    """Each video's prediction: its rows times their weights, which may differ from frame to frame."""
    out = torch.zeros((videos, *preds.shape[1:]), dtype=preds.dtype, device=preds.device)
    for pred, (video, row) in zip(preds, rows, strict=True):
        weights = torch.tensor(row.frame_weights, dtype=preds.dtype, device=preds.device)
        out[video].addcmul_(pred, weights.repeat_interleave(tokens_per_frame)[:, None])
    return out


def denoise(
    latents: Float[Tensor, "V S C"],
    times: Sequence[float],
    rows_at: Callable[[int], Sequence[StepRow]],
    predict: Predict,
    tokens_per_frame: int,
    *,
    first: int = 0,
    after_step: AfterStep = lambda done, latents: None,
) -> Float[Tensor, "V S C"]:
    """Latents at times[-1], from those at times[first].

    `predict` gives the model's output for the rows of a step, on whatever ranks.

    The latents' dtype is the state's: times are rounded to it before the model sees them, as the reference's
    bf16 state does.
    """
    for step, (t, t_next) in islice(enumerate(pairwise(times)), first, None):
        rows = rows_at(step)
        seen = torch.tensor(t, dtype=latents.dtype).item()
        preds = predict(step, latents, seen, rows)
        latents = latents + (t_next - t) * mix(preds, rows, latents.shape[0], tokens_per_frame)
        after_step(step + 1, latents)
    return latents
