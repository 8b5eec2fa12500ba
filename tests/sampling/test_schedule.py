"""Compare timesteps, packing and conditions with the reference's numbers."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opensora_launch.plan.rows import Guidance
from opensora_launch.sampling.conditions import condition, given_frames, pack_condition, restore_given
from opensora_launch.sampling.denoise import (
    StepRow,
    batch_rows,
    denoise,
    equal_inputs,
    mix,
    reused_after,
    weights_on_device,
)
from opensora_launch.sampling.latents import draw_noise, pack, position_ids, unpack
from opensora_launch.sampling.schedule import timesteps

REFERENCE = Path(__file__).parent.parent / "reference"
CPU = torch.device("cpu")


def read(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    case = json.loads((REFERENCE / f"{name}.json").read_text())
    return case, load_file(REFERENCE / case["file"]) if "file" in case else {}


# The released configs never change the schedule's base and max shift, and a run cannot change them either.
SCHEDULES = [c for c in read("schedule")[0]["cases"] if "base_shift" not in c["args"]]


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda c: c["label"])
def test_timesteps(case):
    a = case["args"]
    got = timesteps(
        a["num_steps"],
        a["image_seq_len"],
        a["num_frames"],
        shift=a.get("shift", True),
        flow_shift=a.get("shift_alpha"),
    )
    assert got == pytest.approx(case["timesteps"], rel=1e-6, abs=1e-7)


PACKING, PACKED = read("packing")


@pytest.mark.parametrize("case", PACKING["cases"], ids=lambda c: str(c["noise_shape"]))
def test_noise_and_packing(case):
    n, patch, shape = case["case"], case["patch_size"], case["noise_shape"]
    noise = PACKED[f"{n}.noise"]
    assert torch.equal(pack(noise, patch), PACKED[f"{n}.packed"])
    assert torch.equal(unpack(PACKED[f"{n}.packed"], shape[2], shape[3], shape[4], patch), noise)
    ids = position_ids(shape[2], shape[3] // patch, shape[4] // patch, CPU)
    assert torch.equal(ids[0], PACKED[f"{n}.prepare.img_ids"][0])
    if shape[0] == 1:  # one generator per video: equal to the reference if it makes one video
        assert torch.equal(draw_noise([case["seed"]], tuple(shape[1:]), device=CPU, dtype=torch.float32), noise)


def test_a_seed_means_the_same_noise_in_any_batch():
    alone = draw_noise([7], (2, 3, 4, 4), device=CPU, dtype=torch.float32)
    batch = draw_noise([3, 7], (2, 3, 4, 4), device=CPU, dtype=torch.float32)
    assert torch.equal(alone[0], batch[1])
    assert not torch.equal(batch[0], batch[1])


CONDITIONS, GIVEN = read("conditions")
CAUSAL = [c for c in CONDITIONS["cases"] if c.get("causal")]


@pytest.mark.parametrize("case", CAUSAL, ids=lambda c: c["cond_type"])
def test_conditions(case):
    kind, key = case["cond_type"], f"{case['cond_type']}.causal"
    for b in range(2):
        names = [f"ref.{case['refs']}.{b}.{i}" for i in range(2)]
        masks, given = condition(kind, [GIVEN[n] for n in names if n in GIVEN], torch.zeros(4, 20, 4, 6))
        assert torch.equal(masks, GIVEN[f"{key}.masks"][b])
        assert torch.equal(given, GIVEN[f"{key}.masked_ref"][b])
        assert torch.equal(pack_condition(masks, given, 2), GIVEN[f"{key}.cond_packed"][b])


def test_the_condition_of_a_single_image_is_ignored():
    assert given_frames("i2v_head", 1) == []


def test_every_video_of_a_batch_gets_its_image_back():
    latents, head, tail = torch.zeros(4, 5, 2, 2), torch.ones(4, 1, 2, 2), torch.full((4, 1, 2, 2), 2.0)
    out = restore_given(latents, "i2v_loop", [head, tail])
    assert out[0, :, 0, 0].tolist() == [1, 0, 0, 0, 2]
    assert restore_given(latents, "v2v_head", [torch.ones(4, 9, 2, 2)]) is latents


def test_rows_with_equal_inputs_are_found_by_value():
    text, negative, cond = torch.ones(3), torch.zeros(3), torch.ones(2)
    assert equal_inputs([(text, cond), (negative, cond), (negative.clone(), torch.ones(2))]) == (0, 1, 1)
    assert equal_inputs([(text, cond), (negative, cond), (negative, torch.zeros(2))]) == (0, 1, 2)
    assert equal_inputs([(text, None), (text.clone(), None), (text, None)]) == (0, 0, 0)


def linear(step, latents, t, rows):
    """Predict b + 1 everywhere for branch b."""
    return torch.stack([torch.full_like(latents[v], row.branch + 1.0) for v, row in rows])


def test_the_loop_mixes_rows_and_takes_euler_steps():
    guidance = Guidance(2, 3.0, 2.0, False, False, False)
    calls = []

    def predict(step, latents, t, rows):
        calls.append((step, round(t, 4), [(v, r.branch) for v, r in rows]))
        return linear(step, latents, t, rows)

    got = denoise(
        torch.zeros(1, 4, 1),
        [1.0, 0.6, 0.0],
        batch_rows(guidance, 2, [(0, 1, 2)], prune=True),
        predict,
    )
    mixed = 3 + 2.0 * (2 - 3) + 3.0 * (1 - 2)  # c2 + g_img (c1 - c2) + g_txt (c0 - c1)
    torch.testing.assert_close(got, torch.full((1, 4, 1), -mixed))
    assert calls == [(0, 1.0, [(0, 0), (0, 1), (0, 2)]), (1, 0.6, [(0, 0), (0, 1), (0, 2)])]


def test_frame_weights_reach_their_own_tokens():
    guidance = Guidance(1, 1.0, 3.0, False, False, True)
    (rows,) = batch_rows(guidance, 3, [(0, 1, 2)], prune=True)
    preds = torch.tensor([1.0, 10.0, 100.0])[[r.branch for _, r in rows]].view(-1, 1, 1).expand(-1, 6, 1)
    got = mix(preds.unbind(), rows, 1, weights_on_device([rows], preds))[0, :, 0]
    image = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    torch.testing.assert_close(got, 100 + image * (10 - 100) + 1.0 * (1 - 10))


def test_a_bf16_state_rounds_times_as_the_reference_does():
    seen = []

    def predict(step, latents, t, rows):
        seen.append(t)
        return linear(step, latents, t, rows)

    times = timesteps(50, 2304, 33, shift=True, flow_shift=None)
    guidance = Guidance(50, 1.0, 1.0, False, False, False)
    denoise(
        torch.zeros(1, 1, 1, dtype=torch.bfloat16),
        times,
        batch_rows(guidance, 1, [(0, 1, 1)], prune=True),
        predict,
    )
    assert len(set(seen)) == 44


REUSING = Guidance(12, 3.0, 2.0, True, True, False, reuse_every=3, reuse_from=2)


def noted(calls: list[tuple[int, list[int]]]) -> Callable[..., Tensor]:
    """A prediction that depends on latents, time and branch, and notes which rows of which step it was asked for."""

    def predict(step: int, latents: Tensor, t: float, rows: Sequence[StepRow]) -> Tensor:
        calls.append((step, [row.branch for _, row in rows]))
        return torch.stack([latents[video].sin() * (row.branch + 1) + t for video, row in rows])

    return predict


def test_only_rows_that_are_due_are_computed():
    calls: list[tuple[int, list[int]]] = []
    steps = batch_rows(REUSING, 2, [(0, 1, 1)], prune=True)
    denoise(torch.ones(1, 4, 1), timesteps(12, 2304, 2, shift=False, flow_shift=None), steps, noted(calls))
    assert calls == [(0, [0, 1]), (1, [0, 1]), (4, [0, 1]), (7, [0, 1]), (10, [0, 1])]


def test_denoising_goes_on_from_any_step_with_the_same_bits():
    times = timesteps(12, 2304, 2, shift=False, flow_shift=None)
    steps = batch_rows(REUSING, 2, [(0, 1, 2), (0, 1, 1)], prune=True)
    kept: list[tuple[int, Tensor, Sequence[Tensor]]] = []
    want = denoise(torch.randn(2, 4, 3), times, steps, noted([]), after_step=lambda *found: kept.append(found))
    assert [len(reused) for _, _, reused in kept] == [len(reused_after(steps, done)) for done in range(1, 13)]
    assert {len(reused) for _, _, reused in kept} == {0, 2, 5}  # text rows only, before steps with a scale of 1
    for first, latents, reused in kept:
        assert torch.equal(denoise(latents, times, steps, noted([]), first=first, reused=reused), want)
