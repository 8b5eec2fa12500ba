"""The denoising loop: Euler steps along the mixed prediction of the needed guidance rows.

Shapes: V videos, R rows of a step, S tokens, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from opensora_launch.plan.rows import NUM_ROWS, Guidance, Row, rows_of_steps

StepRow = tuple[int, Row]  # index of the video in the batch, the row
Predict = Callable[[int, Float[Tensor, "V S C"], float, Sequence[StepRow]], Float[Tensor, "R S C"]]
Reused = Sequence[Float[Tensor, "S C"]]  # the predictions that later steps reuse, in the order of `reused_after`
AfterStep = Callable[[int, Float[Tensor, "V S C"], Reused], None]  # finished steps, the latents after them
FrameWeights = Mapping[tuple[float, ...], Float[Tensor, "frames"]]  # a row's weights of the frames, on the device


def batch_rows(
    guidance: Guidance, latent_frames: int, equal_to: Sequence[tuple[int, ...]], prune: bool
) -> list[list[StepRow]]:
    """Return every row that each step of a batch needs. equal_to[v] is for video v, as in `needed_rows`."""
    videos = [rows_of_steps(guidance, latent_frames, equal_to=equal, prune=prune) for equal in equal_to]
    return [[(video, row) for video, rows in enumerate(each) for row in rows] for each in zip(*videos, strict=True)]


def reused_after(steps: Sequence[Sequence[StepRow]], done: int) -> list[tuple[int, int]]:
    """Return (video, branch) of each prediction of the first `done` steps that a later step reuses."""
    return sorted({(video, row.branch) for rows in steps[done:] for video, row in rows if row.made_at < done})


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
    preds: Sequence[Float[Tensor, "S C"]], rows: Sequence[StepRow], videos: int, weights: FrameWeights
) -> Float[Tensor, "V S C"]:
    """Mix each video's prediction: its rows times their weights, which may differ between frames."""
    out = preds[0].new_zeros(videos, *preds[0].shape)
    for pred, (video, row) in zip(preds, rows, strict=True):
        weight = weights[row.frame_weights]
        frames = (weight.numel(), -1)
        out[video].unflatten(0, frames).addcmul_(pred.unflatten(0, frames), weight[:, None, None])
    return out


def denoise(
    latents: Float[Tensor, "V S C"],
    times: Sequence[float],
    steps: Sequence[Sequence[StepRow]],
    predict: Predict,
    *,
    first: int = 0,
    reused: Reused = (),
    after_step: AfterStep = lambda done, latents, reused: None,
) -> Float[Tensor, "V S C"]:
    """Take the latents from times[first] to times[-1]. steps[i] are the rows that step i needs.

    `predict` returns the model's output for the rows that a step computes, on whatever ranks. `reused` is what the
    steps before `first` left to `after_step`. Times are rounded to the latents' dtype before the model sees them, as in
    the reference's bf16 state.
    """
    weights = weights_on_device(steps, latents)
    known = dict(zip(reused_after(steps, first), reused, strict=True))
    for step, (t, t_next) in islice(enumerate(pairwise(times)), first, None):
        rows = steps[step]
        seen = torch.tensor(t, dtype=latents.dtype).item()
        if due := [(video, row) for video, row in rows if row.made_at == step]:
            made = predict(step, latents, seen, due)
            known |= {(video, row.branch): pred for (video, row), pred in zip(due, made, strict=True)}
        preds = [known[video, row.branch] for video, row in rows]
        latents = latents + (t_next - t) * mix(preds, rows, latents.shape[0], weights)
        known = {key: known[key] for key in reused_after(steps, step + 1)}
        after_step(step + 1, latents, [*known.values()])
    return latents
