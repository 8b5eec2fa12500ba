"""What the report says to change: the planner's ratios on known cards, measured parts elsewhere; nothing invented."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from opensora_launch.plan.make_plan import make_plan, predict
from opensora_launch.plan.plan import Machine
from opensora_launch.report.wording import message, say
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import Offload, PlacementConfig, RunConfig, Shard
from opensora_launch.schema.plain import config_yaml
from tests.configs import changed
from tests.report.checked import build
from tests.report.synthetic import a_plan, plain_simulation, write_run

CARDS = Path(__file__).parents[2] / "configs" / "hardware"


def config(card: str = "h100_sxm", **changes: Any) -> RunConfig:
    return changed(RunConfig(hardware=Card(**yaml.safe_load((CARDS / f"{card}.yaml").read_text()))), **changes)


def advised(tmp_path: Path, asked: RunConfig, ranks: int, videos: int = 1) -> dict[str, dict[str, Any]]:
    """Advice for a run on GPUs, by what to do."""
    prompts = tuple(f"prompt {n}" for n in range(videos))
    plan = make_plan(asked, Machine("cuda", 1, ranks, ranks), a_plan(1, prompts=prompts).videos, "0.1.0")
    names = [video.name for video in plan.videos]
    run = write_run(tmp_path / "run", plan, [plain_simulation(ranks).events()], done=names)
    (run / "config.yaml").write_text(config_yaml(asked))
    report = build(run)
    assert report["prediction_reason"] is None
    return {say(advice["do"]): advice for advice in report["advice"]}


def test_the_planner_advises_another_layout(tmp_path: Path) -> None:
    """A ring over eight GPUs with NVLink, where guidance rows and heads could be dealt."""
    asked = config(layout__ring=8)
    ((do, advice),) = (pair for pair in advised(tmp_path, asked, 8).items() if pair[0].startswith("layout."))
    assert "layout.ring=1" in do
    assert advice["do"] == message("set", overrides=do)
    assert advice["what"] == message("faster_layout", layout="dp1 cfg1 ring8 ulysses1 tp1")
    assert advice["basis"] == "predicted"
    assert advice["then_s"] == pytest.approx(advice["now_s"] - advice["gain_s"], abs=1e-5)


def test_its_gain_is_the_planners_ratio(tmp_path: Path) -> None:
    """Weights in host memory that would fit on the GPU: 24.75 s, of which 3.5 are setup, load and text."""
    asked = config(placement__offload=Offload.host, placement__resident_blocks=0)
    found = advised(tmp_path, asked, 2)
    advice = found["placement.offload=none"]
    assert say(advice["what"]).endswith(": replicated weights instead of weights in host memory.")
    videos = a_plan(1).videos
    slow, fast = (predict(run, Machine("cuda", 1, 2, 2), videos)[1][0].phases.making for run in (asked, config()))
    wall = 0.5 + 2.0 + 1.0 + 18 + 5 * 0.25 + 1.5 + 0.5
    assert advice["gain_s"] == pytest.approx((1 - fast / slow) * (wall - 3.5), rel=1e-3)
    assert advice["gain_s"] > 1


@pytest.mark.parametrize(
    ("card", "ranks", "frames", "shard", "change"),
    [
        ("rtx4090", 1, 17, None, "placement.resident_blocks=51"),
        ("rtx3090", 2, 41, Shard.all, "placement.shard=node placement.offload=none"),
    ],
)
def test_all_of_a_placement_that_differs_is_advised(
    card: str, ranks: int, frames: int, shard: Shard | None, change: str, tmp_path: Path
) -> None:
    """And nothing that the run has: the run with the change is the one that was predicted to be faster."""
    placement = PlacementConfig(shard=shard, offload=Offload.host, resident_blocks=0)
    asked = config(card, video__num_frames=frames, placement=placement)
    assert [c for c in advised(tmp_path, asked, ranks) if c.startswith("placement.")] == [change]


def test_what_would_not_fit_is_not_advised(tmp_path: Path) -> None:
    """24 GB cards can not hold the weights whole, and a run that was planned freely has nothing to gain."""
    asked = config("rtx4090", placement__shard=Shard.node)
    most = "placement.offload=host placement.resident_blocks=39"  # of 57 blocks
    assert [c for c in advised(tmp_path, asked, 4) if c.startswith("placement.")] == [most]
    assert [c for c in advised(tmp_path / "free", config(), 8) if c.startswith(("layout", "placement"))] == []


def test_rows_and_batches_are_left_to_the_planner(tmp_path: Path) -> None:
    asked = config(sampling__prune_rows=False, layout__ring=8)
    found = advised(tmp_path, asked, 8)
    assert found["sampling.prune_rows=true"]["basis"] == "predicted"
    do, together = next((do, advice) for do, advice in found.items() if advice["what"] == message("all_changes"))
    assert do.startswith("layout.dp=1 layout.cfg=")
    assert do.endswith("sampling.prune_rows=true")
    assert together["gain_s"] > found["sampling.prune_rows=true"]["gain_s"]


def test_rows_that_need_not_be_computed_on_a_cpu(tmp_path: Path) -> None:
    """By this run's own times: the planner has no rates for it."""
    plan = a_plan(2, sampling__prune_rows=False)
    folder = write_run(tmp_path / "run", plan, [plain_simulation(2).events()], done=["0000_0"])
    first = build(folder)["advice"][0]
    assert first["do"] == message("set", overrides="sampling.prune_rows=true")
    assert first["what"] == message("unneeded_rows", computed=150, needed=80)
    assert first["gain_s"] == pytest.approx((18 + 1.25) * (1 - 80 / 150))
    assert first["then_s"] == pytest.approx(24.75 - first["gain_s"])
    assert first["basis"] == "measured"


def test_a_clean_run_is_advised_nothing(tmp_path: Path) -> None:
    """Its loading is a tenth of it, all ranks have rows, and tiles are what the model asks for."""
    folder = write_run(tmp_path / "run", a_plan(2), [plain_simulation(2).events()], done=["0000_0"])
    assert build(folder)["advice"] == []


def test_loading_is_paid_once_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", a_plan(2), [plain_simulation(2, scale=0.1).events()], done=["0000_0"])
    (advice,) = build(run)["advice"]
    assert say(advice["what"]).startswith("Setup and load take 2.5 of")
    assert advice["gain_s"] == pytest.approx(2.5 * 0.9)
