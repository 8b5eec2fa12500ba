"""The presets of `quality`: off by default, refused where nobody measured them, and named wherever a run is."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.request.compose import compose
from opensora_launch.rundir import RunDir
from opensora_launch.runs.files import read_plan
from opensora_launch.runs.remake import remake_command
from opensora_launch.schema.config import RunConfig, SamplingConfig
from tests.ranks import run_command
from tests.worker.plans import TINY, small_plan, video


def run_of(*overrides: str) -> RunConfig:
    return compose(overrides).points[0].run


def test_exact_is_the_default_and_changes_nothing() -> None:
    assert run_of("model=demo").quality == "exact"
    assert run_of("model=demo") == run_of("model=demo", "quality=exact")
    assert (SamplingConfig().reuse_every, SamplingConfig().guidance_until) == (1, 1.0)


def test_a_preset_sets_what_it_bundles_and_single_settings_win() -> None:
    exact, fast = run_of("model=demo"), run_of("model=demo", "quality=fast")
    assert (fast.sampling.reuse_every, fast.sampling.guidance_until) == (4, 0.5)
    assert replace(fast, quality=exact.quality, sampling=exact.sampling) == exact
    assert run_of("quality=fast", "model=demo").sampling == fast.sampling
    assert run_of("model=demo", "quality=fast", "sampling.reuse_every=3").sampling.reuse_every == 3


@pytest.mark.parametrize("model", ["tiny", "open_sora_v2"])
def test_a_model_without_a_measured_loss_refuses_presets(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", f"model={model}", "topology=8gpu", "hardware=h100_sxm", "quality=balanced"]
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert f"quality=balanced was measured for model=demo only, not for {model}: use quality=exact" in said


def test_single_settings_run_and_are_named() -> None:
    assert small_plan(1, [video()], reuse_every=3).approximate == (
        "sampling.reuse_every=3 (loss not measured for this model)",
    )
    measured = small_plan(1, [video()], model=replace(TINY, name="demo"), reuse_every=3, guidance_until=0.5)
    assert measured.approximate == ("sampling.reuse_every=3", "sampling.guidance_until=0.5")
    assert small_plan(1, [video()]).approximate == ()


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("sampling.reuse_every=0", "sampling.reuse_every=0 must be at least 1"),
        ("sampling.reuse_from=0", "sampling.reuse_from=0 must be at least 1: step 0 reuses nothing"),
        ("sampling.guidance_until=1.5", "sampling.guidance_until=1.5 must be between 0 and 1"),
        ("quality=good", "good"),
    ],
)
def test_a_wrong_value_is_one_line(override: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "model=tiny", "topology=cpu1", "dry_run=true", "--prompt", "rain", override]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert "Traceback" not in said


def test_the_plan_counts_fewer_rows_and_names_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "model=open_sora_v2", "topology=8gpu", "hardware=h100_sxm"]
    assert main(asked) == 0
    whole = capsys.readouterr().out
    assert main([*asked, "sampling.reuse_every=3"]) == 0
    fewer = capsys.readouterr().out
    assert re.findall(r"\d+ steps", whole) == ["30 steps", "20 steps"]
    assert re.findall(r"\d+ steps", fewer) == ["10 steps", "15 steps"]
    assert "approximate: sampling.reuse_every=3 (loss not measured for this model)" in " ".join(fewer.split())
    assert "approximate" not in whole


def test_a_run_keeps_its_settings(tmp_path: Path) -> None:
    asked = ["generate", "model=tiny", "topology=cpu1", "launcher=inline", "runs_dir=.", "--prompt", "rain"]
    assert run_command(tmp_path, *asked, "sampling.reuse_every=3")[0] == 0
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir())
    report = json.loads((run / "report.json").read_text())
    assert report["approximate"] == ["sampling.reuse_every=3 (loss not measured for this model)"]
    assert report["work"]["approximate"] == report["approximate"][0]
    again = remake_command(RunDir(run), read_plan(RunDir(run).plan).videos[0])
    assert again is not None
    assert "sampling.reuse_every=3" in again
    code, _, said = run_command(tmp_path, "generate", "--resume", str(run), "sampling.reuse_every=2")
    assert code == 2
    assert "sampling.reuse_every" in said
