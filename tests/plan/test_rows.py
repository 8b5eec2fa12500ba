"""Compare the guidance rows that a step needs with the reference's scales."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from opensora_launch.plan.rows import (
    Guidance,
    branch_weights,
    computed_rows,
    equal_branches,
    needed_rows,
    row_counts,
    rows_of_steps,
)

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


def made_at(guidance: Guidance, branch: int, equal_to: tuple[int, ...] = (0, 1, 1)) -> dict[int, int]:
    """By step that needs the row of the branch: the step that computes its prediction."""
    steps = rows_of_steps(guidance, 3, equal_to=equal_to)
    return {step: row.made_at for step, rows in enumerate(steps) for row in rows if row.branch == branch}


def test_by_default_every_step_computes_its_rows():
    steps = rows_of_steps(SHIPPED, 3, equal_to=(0, 1, 2))
    assert list(steps) == [needed_rows(SHIPPED, step, 3, equal_to=(0, 1, 2)) for step in range(50)]
    assert all(computed_rows(rows, step) == rows for step, rows in enumerate(steps))


def test_a_prediction_serves_for_some_steps():
    guidance = replace(SHIPPED, num_steps=14, reuse_every=3, reuse_from=2)
    text = {0: 0, 1: 1, 2: 1, 3: 1, 4: 4, 5: 4, 6: 4, 7: 7, 8: 7, 9: 7, 10: 10, 11: 10, 12: 10, 13: 13}
    assert made_at(guidance, 0) == text
    # the odd steps from 10 on do not need the other row, so step 12 has the prediction of step 10
    assert made_at(guidance, 1) == {step: made for step, made in text.items() if step not in (11, 13)}


def test_a_row_that_was_not_needed_has_an_older_prediction():
    guidance = replace(SHIPPED, num_steps=16, reuse_every=2, reuse_from=1)
    assert list(made_at(guidance, 0).values()) == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14]
    late = made_at(replace(guidance, reuse_every=3), 1)
    assert {step: late[step] for step in (9, 10, 12, 14)} == {9: 9, 10: 9, 12: 12, 14: 12}


def test_guidance_ends_early():
    guidance = replace(SHIPPED, num_steps=20, text_osci=False, image_osci=False, guidance_until=0.35)
    assert max(made_at(guidance, 1)) == 6
    assert row_counts(guidance, False, False, 3, True) == (2,) * 7 + (1,) * 13
    assert row_counts(replace(guidance, guidance_until=0.0), False, False, 3, True) == (1,) * 20


@pytest.mark.parametrize("equal_to", [(0, 1, 1), (0, 1, 2), (0, 0, 2)])
def test_what_is_reused_was_computed_and_is_not_older_than_allowed(equal_to):
    for every, first in ((1, 4), (2, 1), (3, 4), (7, 2)):
        guidance = replace(SHIPPED, reuse_every=every, reuse_from=first, guidance_until=0.8)
        seen = set()
        for step, rows in enumerate(rows_of_steps(guidance, 3, equal_to=equal_to)):
            seen |= {(row.branch, step) for row in computed_rows(rows, step)}
            assert all((row.branch, row.made_at) in seen and step - row.made_at < every for row in rows)
            assert step >= first or computed_rows(rows, step) == rows
