"""Evaluate the demo model: generate held-out combinations and judge their pixels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from demo import clips, judge
from demo.generate import DEFAULTS, Networks, Request, generate, true_clip
from opensora_launch.plan.rows import Guidance

FIRST_SEED = 1000
IMAGES = {"i2v_head": (0,), "i2v_tail": (-1,), "i2v_loop": (0, -1)}  # given frames of a true clip


@dataclass(frozen=True)
class Score:
    """Hold the shares of `count` clips judged right, and mean and worst PSNR in dB of the given frames, or None."""

    cond_type: str  # or t2i, an image; or t2i2v, a clip from it
    count: int
    colour: float
    shape: float
    direction: float
    all_three: float
    psnr_mean_db: float | None
    psnr_worst_db: float | None
    mistakes: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """Return the figures that there are, by their names and the condition's."""
        named = {k: v for k, v in asdict(self).items() if k not in ("cond_type", "count", "mistakes")}
        return {f"{self.cond_type}_{name}": value for name, value in named.items() if value is not None}


def requests_of(cond_type: str, repeats: int) -> tuple[list[Request], list[clips.Combination]]:
    """Return every held-out combination `repeats` times with its own seed; i2v gets frames of a true clip."""
    combos = list(clips.HELD_OUT) * repeats
    requests = []
    for number, combination in enumerate(combos):
        seed = FIRST_SEED + number
        clip = true_clip(combination, seed)
        images = tuple(clip[:, frame] for frame in IMAGES.get(cond_type, ()))
        requests.append(Request(clips.caption(combination), seed, cond_type if images else "t2v", images))
    return requests, combos


def score(
    networks: Networks,
    cond_type: str,
    repeats: int,
    *,
    guidance: Guidance = DEFAULTS,
    batch: int = 24,
    then: Networks | None = None,
) -> tuple[Score, Tensor]:
    """Return the score over 24 * repeats clips, and the clips [N, 3, frames, H, W].

    t2i scores the networks' images; t2i2v the clips that the networks `then` make from these as first frames.
    """
    requests, combos = requests_of(cond_type, repeats)
    settings = replace(guidance, temporal_osci=guidance.temporal_osci and cond_type.startswith("i2v"))
    made = make(networks, requests, settings, batch)
    if then is not None:
        images = eight_bits(made[:, :, 0])
        requests = [replace(r, cond_type="i2v_head", images=(i,)) for r, i in zip(requests, images, strict=True)]
        made = make(then, requests, settings, batch)
    verdicts = [judge.judge(clip) for clip in made]
    psnrs = [
        judge.psnr(clip[:, frame], image)
        for clip, request in zip(made, requests, strict=True)
        for frame, image in zip(IMAGES.get(request.cond_type, ()), request.images, strict=True)
    ]
    return summary(cond_type, verdicts, combos, psnrs), made


def make(networks: Networks, requests: Sequence[Request], guidance: Guidance, batch: int) -> Tensor:
    """Generate the clips of these requests, `batch` at once."""
    return torch.cat([generate(networks, requests[b : b + batch], guidance) for b in range(0, len(requests), batch)])


def eight_bits(images: Tensor) -> Tensor:
    """Round pixels in [-1, 1] as a PNG file does."""
    return (images * 127.5 + 128).floor().clamp(0, 255) / 127.5 - 1


def summary(
    cond_type: str, verdicts: Sequence[judge.Verdict], combos: Sequence[clips.Combination], psnrs: Sequence[float]
) -> Score:
    """Compare the verdicts with the requests."""
    pairs = list(zip(verdicts, combos, strict=True))
    mistakes = Counter(
        f"{c.colour} {c.shape} {c.direction} -> {v.colour} {v.shape} {v.direction}" for v, c in pairs if not v.agrees(c)
    )
    share = 1 / len(pairs)
    return Score(
        cond_type=cond_type,
        count=len(pairs),
        colour=sum(v.colour == c.colour for v, c in pairs) * share,
        shape=sum(v.shape == c.shape for v, c in pairs) * share,
        direction=sum(v.direction == c.direction for v, c in pairs) * share,
        all_three=sum(v.agrees(c) for v, c in pairs) * share,
        psnr_mean_db=sum(psnrs) / len(psnrs) if psnrs else None,
        psnr_worst_db=min(psnrs) if psnrs else None,
        mistakes=tuple(f"{n} x {text}" for text, n in mistakes.most_common()),
    )
