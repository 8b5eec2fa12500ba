"""Compare the guidance rows that a step needs with the reference's scales."""

import json
from pathlib import Path

import pytest

from opensora_launch.plan.rows import Guidance, branch_weights, equal_branches, needed_rows

REFERENCE = json.loads((Path(__file__).parent.parent / "reference/guidance.json").read_text())
SHIPPED = Guidance(50, 7.5, 3.0, text_osci=True, image_osci=True, temporal_osci=False)


@pytest.mark.parametrize("loop", REFERENCE["loop"], ids=lambda loop: str(loop["args"])[:40])
def test_weights_are_the_references(loop):
    a = loop["args"]
    guidance = Guidance(
        a["num_steps"], a["guidance"], a["guidance_img"], a["text_osci"], a["image_osci"], a["scale_temporal"]
    )
    for step in loop["steps"]:
        text, negative, empty = branch_weights(guidance, step["i"], a["T"])
        image = [1 - w for w in empty]
        assert text == pytest.approx([step["text_gs"]] * a["T"], abs=2e-4)
        assert image == pytest.approx(step["image_gs_per_latent_frame"], abs=2e-4)
        assert [sum(w) for w in zip(text, negative, empty, strict=True)] == pytest.approx([1.0] * a["T"])


def forwards(guidance: Guidance, equal_to: tuple[int, ...], prune: bool = True) -> int:
    return sum(len(needed_rows(guidance, i, 33, equal_to=equal_to, prune=prune)) for i in range(guidance.num_steps))


def test_row_forwards_of_the_shipped_settings():
    """80 and 110 of the reference's 150 remain. The code knows only weights and inputs, not t2v or i2v."""
    t2v = equal_branches(text_equals_negative=False, has_condition=False)
    i2v = equal_branches(text_equals_negative=False, has_condition=True)
    ramp = Guidance(50, 7.5, 3.0, text_osci=True, image_osci=True, temporal_osci=True)
    assert (t2v, i2v) == ((0, 1, 1), (0, 1, 2))
    assert [forwards(SHIPPED, t2v), forwards(ramp, i2v), forwards(SHIPPED, t2v, prune=False)] == [80, 110, 150]


def test_an_empty_prompt_needs_one_row():
    equal = equal_branches(text_equals_negative=True, has_condition=False)
    rows = needed_rows(SHIPPED, 0, 5, equal_to=equal)
    assert equal == (0, 0, 0)
    assert [(r.branch, r.frame_weights) for r in rows] == [(0, (1.0,) * 5)]


@pytest.mark.parametrize("scales", [(7.5, 3.3), (1.0, 3.3), (2.2, 1.0), (1.0, 1.0), (0.0, 2.0)])
@pytest.mark.parametrize("equal_to", [(0, 1, 1), (0, 1, 2), (0, 0, 2), (0, 0, 0)])
def test_pruned_rows_mix_to_the_same_sum(scales, equal_to):
    """If equal inputs give equal outputs, dropping and merging rows changes nothing."""
    guidance = Guidance(3, scales[0], scales[1], text_osci=False, image_osci=False, temporal_osci=True)
    outputs = [(2.0, -5.0, 11.0)[equal_to[b]] for b in range(3)]
    full = branch_weights(guidance, 1, 4)
    want = [sum(full[b][f] * outputs[b] for b in range(3)) for f in range(4)]
    rows = needed_rows(guidance, 1, 4, equal_to=equal_to)
    got = [sum(r.frame_weights[f] * outputs[r.branch] for r in rows) for f in range(4)]
    assert got == pytest.approx(want, abs=1e-12)


def test_a_distilled_model_has_one_row():
    guidance = Guidance(4, 4.0, 3.0, True, True, False, distilled=True)
    assert [(r.branch, r.frame_weights) for r in needed_rows(guidance, 0, 2, equal_to=(0, 1, 1))] == [(0, (1.0, 1.0))]
