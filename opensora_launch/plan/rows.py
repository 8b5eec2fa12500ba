"""Guidance rows: which of them a step needs, and their weights.

Open-Sora computes three rows of every video on every step and mixes them (opensora/utils/sampling.py):

    row 0: text, condition      row 1: negative text, condition      row 2: negative text, no condition
    prediction = c2 + g_img * (c1 - c2) + g_txt * (c0 - c1)

so the rows' weights are (g_txt, g_img - g_txt, 1 - g_img). A row whose weight is zero for every frame is not needed,
and rows with equal inputs are computed once, weighted by their sum. Nothing else is assumed.

Approximate settings compute fewer: guidance may end early, and a step may reuse what a row predicted in an earlier one.
Which ones do is known before the first step, so ranks and layouts have no part in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

NUM_ROWS = 3
OSCILLATE_FROM = 10  # steps before this keep their scale; from here on every odd step has scale 1


@dataclass(frozen=True)
class Guidance:
    """How one video's rows are mixed in its steps."""

    num_steps: int
    text_scale: float
    image_scale: float
    text_osci: bool
    image_osci: bool
    temporal_osci: bool  # the image scale grows with the latent frame; only for image conditions
    distilled: bool = False  # the model takes the scale as an input: one row with weight 1
    guidance_until: float = 1.0  # share of the steps; from then on all scales are 1
    reuse_every: int = 1  # steps for which a row's prediction serves; 1: each step computes its rows
    reuse_from: int = 4  # steps before this one compute their rows


@dataclass(frozen=True)
class Row:
    """A guidance row that a step needs."""

    branch: int  # 0, 1 or 2: the branch whose inputs the row has
    frame_weights: tuple[float, ...]  # one per latent frame
    made_at: int  # the step that computes its prediction: this one, or an earlier one whose prediction is reused


def scale_at(scale: float, step: int, oscillates: bool) -> float:
    """Return the scale of one step: 1 in the odd steps of an oscillating scale, from OSCILLATE_FROM on."""
    return 1.0 if oscillates and step >= OSCILLATE_FROM and step % 2 == 1 else scale


def image_scales(guidance: Guidance, step: int, latent_frames: int) -> tuple[float, ...]:
    """Return the image scale of each latent frame at one step: constant, or a ramp from 1 that flattens over time."""
    scale = scale_at(guidance.image_scale, step, guidance.image_osci)
    if not guidance.temporal_osci or scale <= 1.0:
        return (scale,) * latent_frames
    upper = scale + (1.0 - scale) * step / guidance.num_steps
    steps = max(latent_frames - 1, 1)
    return tuple(1.0 + (upper - 1.0) * frame / steps for frame in range(latent_frames))


def branch_weights(guidance: Guidance, step: int, latent_frames: int) -> tuple[tuple[float, ...], ...]:
    """Return the weights of the three branches: for each branch one number per latent frame."""
    if guidance.distilled:
        return ((1.0,) * latent_frames, (0.0,) * latent_frames, (0.0,) * latent_frames)
    if step >= guidance.guidance_until * guidance.num_steps:
        guidance = replace(guidance, text_scale=1.0, image_scale=1.0)
    text = scale_at(guidance.text_scale, step, guidance.text_osci)
    image = image_scales(guidance, step, latent_frames)
    return (
        (text,) * latent_frames,
        tuple(g - text for g in image),
        tuple(1.0 - g for g in image),
    )


def needed_rows(
    guidance: Guidance, step: int, latent_frames: int, *, equal_to: tuple[int, ...], prune: bool = True
) -> tuple[Row, ...]:
    """Return the rows that one step of one video needs, as if it computed them all.

    equal_to[b] is the first branch with the same inputs as branch b: (0, 1, 1) for text-to-video, whose condition is
    empty. `prune=False` keeps all three rows, as the reference does.
    """
    weights = branch_weights(guidance, step, latent_frames)
    if not prune and not guidance.distilled:
        return tuple(Row(branch, weights[branch], step) for branch in range(NUM_ROWS))
    rows = []
    for branch in range(NUM_ROWS):
        same = [weights[b] for b in range(NUM_ROWS) if equal_to[b] == branch]
        total = tuple(sum(w) for w in zip(*same, strict=True))
        if any(total):
            rows.append(Row(branch, total, step))
    return tuple(rows)


def rows_of_steps(
    guidance: Guidance, latent_frames: int, *, equal_to: tuple[int, ...], prune: bool = True
) -> tuple[tuple[Row, ...], ...]:
    """Return the rows of every step of one video; the arguments are those of `needed_rows`.

    From step `reuse_from` on, a row is computed if its last prediction is at least `reuse_every` steps old. A row that
    steps in between did not need has an older one, and a row that was never computed is computed.
    """
    made, steps = dict[int, int](), []
    for step in range(guidance.num_steps):
        rows = needed_rows(guidance, step, latent_frames, equal_to=equal_to, prune=prune)
        for row in rows:
            last = made.get(row.branch)
            if last is None or step < guidance.reuse_from or step - last >= guidance.reuse_every:
                made[row.branch] = step
        steps.append(tuple(replace(row, made_at=made[row.branch]) for row in rows))
    return tuple(steps)


def computed_rows(rows: Sequence[Row], step: int) -> tuple[Row, ...]:
    """Return those rows of a step that it computes itself."""
    return tuple(row for row in rows if row.made_at == step)


def equal_branches(*, text_equals_negative: bool, has_condition: bool) -> tuple[int, ...]:
    """Return for each branch the first one with equal inputs, as far as known before anything is encoded."""
    inputs = [(False, True), (True, True), (True, False)]  # (negative text, condition)
    known = [(negative and not text_equals_negative, cond and has_condition) for negative, cond in inputs]
    return tuple(known.index(k) for k in known)


@lru_cache(maxsize=64)  # most videos of a run have the same arguments
def row_counts(
    guidance: Guidance, text_equals_negative: bool, has_condition: bool, latent_frames: int, prune: bool
) -> tuple[int, ...]:
    """Return how many rows each step of one video computes."""
    equal = equal_branches(text_equals_negative=text_equals_negative, has_condition=has_condition)
    steps = rows_of_steps(guidance, latent_frames, equal_to=equal, prune=prune)
    return tuple(len(computed_rows(rows, step)) for step, rows in enumerate(steps))
