"""Efficiency against a named baseline, and refusals."""

import pytest

from opensora_launch.errors import UserError
from opensora_launch.plan.plan import NOT_MEASURED
from opensora_launch.report.accounting import account
from opensora_launch.report.efficiency import (
    Baseline,
    Times,
    comparable_work,
    differences,
    efficiency,
    measured_baseline,
    predicted_baseline,
    refuse_other_work,
)
from opensora_launch.report.wording import message, say
from opensora_launch.schema.config import Offload, Precision, Shard, Storage
from opensora_launch.schema.kernel_kinds import AttentionKind
from tests.report.synthetic import a_plan, plain_simulation, random_simulation


def of(gpus: int, job_s: float, denoise_s: float) -> Baseline:
    return Baseline("measured", "another", message("how_predicted", run="another"), Times(gpus, job_s, denoise_s))


@pytest.mark.parametrize(
    ("gpus", "seconds", "percent"),
    [(2, 863, 95.9), (4, 466, 88.8), (8, 276, 75.0)],
)
def test_open_soras_published_seconds(gpus: int, seconds: float, percent: float) -> None:
    """1656 s on one GPU: https://github.com/hpcaitech/Open-Sora, table of Open-Sora 2.0 at 768px."""
    found = efficiency(Times(gpus, float(seconds), 1.0), of(1, 1656.0, 1.0))
    assert found["job"]["efficiency"] * 100 == pytest.approx(percent, abs=0.05)
    assert found["job"]["speedup"] == pytest.approx(1656 / seconds)


def test_a_baseline_may_have_several_ranks() -> None:
    found = efficiency(Times(8, 30.0, 20.0), of(2, 100.0, 70.0))
    assert [found["job"]["efficiency"], found["job"]["speedup"]] == pytest.approx([100 * 2 / (30 * 8), 100 / 30])
    assert found["denoise"]["efficiency"] == pytest.approx(70 * 2 / (20 * 8))
    assert found["fault"] is None


def test_above_one_is_a_fault() -> None:
    fault = efficiency(Times(2, 60.0, 40.0), of(1, 119.0, 102.4))["fault"]
    assert fault == message("above_one", scopes=[message("denoise_above", efficiency=pytest.approx(1.28))])
    assert say(fault).startswith("Efficiency above 1 (denoising 1.280) is a measurement error until shown otherwise.")
    assert efficiency(Times(2, 50.0, 40.0), of(1, 100.0, 80.0))["fault"] is None


def test_prediction_is_the_sum_of_what_was_shared() -> None:
    base = predicted_baseline("run", account(plain_simulation(2).events()).ranks)
    assert (base.kind, base.run, base.how) == ("predicted", "run", message("how_predicted", run="run"))
    assert base.times.gpus == 1
    assert base.times.denoise_s == pytest.approx(36)
    assert base.times.job_s == pytest.approx(36 + 3 + 1 + 0.5 + 2 + 0.5)  # compute, vae, text, save, load, setup


@pytest.mark.parametrize("seed", range(40))
def test_a_predicted_efficiency_is_never_above_one(seed: int) -> None:
    accounts = account(random_simulation(seed).events())
    times = Times(len(accounts.ranks), accounts.wall_s, max(r.denoise_s for r in accounts.ranks))
    found = efficiency(times, predicted_baseline("run", accounts.ranks))
    assert 0 < found["job"]["efficiency"] <= 1 + 1e-9
    assert 0 < found["denoise"]["efficiency"] <= 1 + 1e-9


def test_a_baseline_of_other_hosts_is_a_stored_one() -> None:
    report = {
        "run": "r", "times": {"gpus": 1, "job_s": 9.0, "denoise_s": 8.0}, "machine": {"hosts": ["a"]},
        "work": {"device_name": "X"}, "engine": "native",
    }  # fmt: skip
    here, elsewhere = measured_baseline(report, ["a", "b"]), measured_baseline(report, ["b"])
    assert (here.kind, say(here.how)) == ("measured", "Run r on 1 x X, engine native.")
    assert (elsewhere.kind, elsewhere.run) == ("stored", "r")
    stored = "Stored report of run r on 1 x X, engine native, measured on a, not on this machine."
    assert say(elsewhere.how) == stored
    nowhere = measured_baseline(report | {"machine": {"hosts": []}}, ["b"])
    assert (nowhere.kind, say(nowhere.how)) == ("stored", stored.replace(", measured on a", ""))


def work(**changes: object) -> dict[str, str | int | float | bool | None]:
    names = changes.pop("device_names", ["a CPU"])
    rows = changes.pop("row_forwards", 80)
    return comparable_work(a_plan(2, **changes), device_names=names, attention=None, row_forwards=rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"video__num_frames": 33}, "num_frames: 33 here, 129 in the baseline"),
        ({"video__aspect_ratio": "1:1"}, "width_px: 256 here, 336 in the baseline"),
        ({"sampling__num_steps": 10}, "num_steps: 10 here, 50 in the baseline"),
        ({"row_forwards": 150}, "row_forwards: 150 here, 80 in the baseline"),
        ({"device_names": ["other", "a CPU"]}, "device_name: a CPU + other here, a CPU in the baseline"),
        ({"launcher__threads_per_rank": 2}, "threads_per_rank: 2 here, 1 in the baseline"),
        ({"model__name": "tiny"}, "model.name: tiny here, open_sora_v2 in the baseline"),
        ({"prompts": ("a", "b")}, "videos: 2 here, 1 in the baseline"),
        ({"sampling__batch_size": 2}, "batch_size: 2 here, 1 in the baseline"),
        ({"precision": Precision.bf16}, "precision: bf16 here, fp32 in the baseline"),
        ({"attention": AttentionKind.reference}, "attention: reference here, auto in the baseline"),
        ({"placement__offload": Offload.host}, "placement.offload: host here, none in the baseline"),
        ({"placement__shard": Shard.node}, "placement.shard: node here, none in the baseline"),
        ({"placement__storage": Storage.fp8}, "placement.storage: fp8 here, full in the baseline"),
        (
            {"numerics__fp8_products": True},
            f"approximate: numerics.fp8_products=true{NOT_MEASURED} here, unknown in the baseline",
        ),
        ({"placement__rows_at_once": 1}, "placement.rows_at_once: 1 here, 0 in the baseline"),
    ],
)
def test_other_work_is_refused_by_name(change: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match="run-1 did other work and cannot be the baseline") as refused:
        refuse_other_work(work(**change), {"run": "run-1", "work": work()})
    assert line in refused.value.problems


def test_all_differences_are_named_at_once() -> None:
    plan, other = a_plan(2), work()
    mine = comparable_work(plan, device_names=["x"], attention=AttentionKind.flash3.value, row_forwards=81)
    assert [found["key"] for found in differences(mine, other)] == ["device_name", "attention", "row_forwards"]
    unknown = [f"{key}: {value} here, unknown in the baseline" for key, value in mine.items()]
    assert [say(found) for found in differences(mine, {})] == unknown


def test_prompt_and_seed_are_not_work() -> None:
    assert differences(work(prompts=("another",), sampling__seed=7), work()) == []
    refuse_other_work(work(prompts=("another",)), {"run": "run-1", "work": work()})
