"""report.json and report.md from the files of runs that ended well, failed, were resumed or lost files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from opensora_launch.errors import UserError
from opensora_launch.plan.plan import NOT_MEASURED
from opensora_launch.report.accounting import WALL_PARTS
from opensora_launch.report.build import build_report
from opensora_launch.report.markdown import summary_lines
from opensora_launch.report.wording import message, say
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import Storage
from opensora_launch.telemetry.failure import Failure, record_failure
from tests.report.checked import VALIDATOR, build
from tests.report.sampled import on_gpus
from tests.report.synthetic import a_plan, plain_simulation, random_simulation, write_events, write_run

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests" / "report" / "stored"
GOLDEN = ROOT / "tests" / "golden" / "report.md"


def good_run(folder: Path, world: int = 2, **options: Any) -> Path:
    sim = plain_simulation(world, **options)
    plan = a_plan(world, prompts=("raining, sea | *waves*\nat night",))
    return write_run(folder, plan, [sim.events()], done=["0000_0"])


def test_markdown_is_the_golden_file(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = good_run(tmp_path / "20261120-190000", slow=[1.0, 1.5])
    on_gpus(run)
    build(run)
    text = (run / "report.md").read_text().replace(str(tmp_path), "/runs")
    if request.config.getoption("--update-golden"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_approximate_settings_are_named_at_the_head(tmp_path: Path) -> None:
    plan = a_plan(2, placement__storage=Storage.fp8, model__vae__tile_frames=16)
    report = build(write_run(tmp_path / "run", plan, [plain_simulation(2).events()], done=["0000_0"]))
    assert report["approximate"] == [f"placement.storage=fp8{NOT_MEASURED}", "model.vae.tile_frames"]
    line = f"Approximate: the video differs by more than rounding because of {', '.join(report['approximate'])}."
    assert (tmp_path / "run/report.md").read_text().splitlines()[2].replace("\\", "") == f"**{line}**"
    assert " ".join(word.strip() for word in summary_lines(report)).startswith(line)
    assert build(good_run(tmp_path / "exact"))["approximate"] == []
    plan = replace(a_plan(2), attention="flash3_fp8")
    report = build(write_run(tmp_path / "8bit", plan, [plain_simulation(2).events()], done=["0000_0"]))
    assert report["approximate"] == [f"attention=flash3_fp8{NOT_MEASURED}"]
    assert summary_lines(report)[0].strip().startswith("Approximate:")


def test_a_good_run(tmp_path: Path) -> None:
    report = build(good_run(tmp_path / "run"))
    assert (report["schema"], report["run"], report["status"]) == (5, "run", "complete")
    prompts = tmp_path / "run/prompts.jsonl"
    assert report["command"] == f"opensora-launch generate video=256px topology=cpu2 --prompts {prompts}"
    assert report["work"]["row_forwards"] == 9
    assert report["machine"]["hosts"] == ["host-a"]
    (attempt,) = report["attempts"]
    assert (attempt["status"], attempt["missing_ranks"], attempt["failure"]) == ("complete", [], None)
    first = attempt["ranks"][0]
    assert list(first["parts"]) == list(WALL_PARTS)
    assert (first["parts"]["compute"], first["parts"]["load"], first["own_row_forwards"]) == (18, 2, 9)
    base = report["efficiency"]["baseline"]
    assert (base["kind"], base["run"], base["how"]) == ("predicted", "run", message("how_predicted", run="run"))
    # 1 s of text on rank 0, then 2.5 + 18 + 5 x 0.25 + 1.5 + 0.5 s, of which one rank would take 43 s in all.
    assert report["times"]["job_s"] == pytest.approx(24.75)
    assert report["efficiency"]["job"]["efficiency"] == pytest.approx(43 / 24.75 / 2, abs=1e-6)
    assert report["samples"] == [
        {"name": "0000_0", "prompt": "raining, sea | *waves*\nat night", "seed": 42, "files": ["samples/0000_0.mp4"],
         "fps": 24, "num_steps": 50, "guidance": 7.5, "cond_type": "t2v", "sheet": None, "failure": None,
         "image": None}
    ]  # fmt: skip


def test_a_measured_baseline(tmp_path: Path) -> None:
    base = good_run(tmp_path / "one", world=1)
    alone = build(base)
    assert (alone["efficiency"], alone["efficiency_reason"]) == (None, message("single_rank"))
    run = good_run(tmp_path / "two")
    for path in (base, base / "report.json"):
        report = build(run, baseline=path)
        assert report["efficiency"]["baseline"]["kind"] == "measured"
        assert report["efficiency"]["baseline"]["run"] == "one"
        assert report["efficiency"]["job"]["efficiency"] == pytest.approx(43 / 24.75 / 2, abs=1e-6)
        assert report["efficiency"]["fault"] is None
    build(good_run(tmp_path / "slow", world=1, scale=2.0))
    assert build(run, baseline=tmp_path / "slow")["efficiency"]["fault"]["code"] == "above_one"
    assert "**Measurement error: Efficiency above 1" in (run / "report.md").read_text()
    assert summary_lines(json.loads((run / "report.json").read_text()))[-2].startswith("    ")


def test_a_stored_baseline(tmp_path: Path) -> None:
    events = [replace(e, meta=replace(e.meta, host="host-b")) for e in plain_simulation(1).events()]
    build(write_run(tmp_path / "one", a_plan(1), [events], done=["0000_0"]))
    report = build(good_run(tmp_path / "two"), baseline=tmp_path / "one")
    assert report["efficiency"]["baseline"]["kind"] == "stored"
    assert message("stored_baseline") in report["unknown"]


def test_a_baseline_stored_by_the_version_before(tmp_path: Path) -> None:
    """Its texts are not read, but where it has no times its reason is given as it is."""
    report = build(good_run(tmp_path / "two"), baseline=STORED / "run_schema3.json")
    base = report["efficiency"]["baseline"]
    assert (base["kind"], base["run"], base["times"]["job_s"]) == ("stored", "one", pytest.approx(43.0))
    old = json.loads((STORED / "run_schema3.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps(old | {"times": None, "efficiency_reason": "no denoising"}))
    with pytest.raises(UserError) as refused:
        build_report(tmp_path / "two", baseline=tmp_path / "old.json")
    assert refused.value.problems == ("no denoising",)


def test_a_slow_gpu_is_named_by_its_uuid_where_no_node_was_sampled(tmp_path: Path) -> None:
    run = good_run(tmp_path / "run", slow=[1.0, 1.5])
    on_gpus(run)
    (run / "attempts/0/telemetry/node-host-a.jsonl").unlink()
    build(run)
    assert (
        "- Rank 1 is slow: the cause is unknown (host-a, GPU-1). It computed for 27.00 s"
        in (run / "report.md").read_text()
    )


def test_baselines_that_are_refused(tmp_path: Path) -> None:
    run = good_run(tmp_path / "two")
    with pytest.raises(UserError, match=r"has no report\.json; make it with: opensora-launch report"):
        build_report(run, baseline=tmp_path / "none")
    (tmp_path / "text.json").write_text("x")
    with pytest.raises(UserError, match="is not the report of a run"):
        build_report(run, baseline=tmp_path / "text.json")
    (tmp_path / "new.json").write_text('{"schema": 1}')
    with pytest.raises(UserError, match="has schema 1; this version reads 3, 4, 5: make the report again"):
        build_report(run, baseline=tmp_path / "new.json")
    other = write_run(
        tmp_path / "other", a_plan(1, video__num_frames=33), [plain_simulation(1).events()], done=["0000_0"]
    )
    build(other)
    with pytest.raises(UserError) as refused:
        build_report(run, baseline=other)
    assert refused.value.problems == ("num_frames: 129 here, 33 in the baseline",)
    assert not (run / "report.json").exists()


def test_a_failed_run_says_how(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", a_plan(2), [plain_simulation(2).events()])
    attempt = run / "attempts/0"
    record_failure(
        AttemptDir(attempt),
        Failure(1, "host-a", "failure", "RuntimeError: no\nmore", phase="denoise", step=3, traceback="long"),
    )
    second = plain_simulation(2).events()[1]
    write_events(attempt / "telemetry/rank1.jsonl", replace(second, end=None))
    with (attempt / "telemetry/rank1.jsonl").open("a") as file:
        file.write('{"kind": "sp')
    report = build(run)
    assert (report["status"], report["times"], report["efficiency"]) == ("failed", None, None)
    assert say(report["efficiency_reason"]) == "The run failed: 0 of 1 video made."
    failure = report["attempts"][0]["failure"]
    assert (failure["rank"], failure["step"], failure["message"]) == (1, 3, "RuntimeError: no\nmore")
    assert "traceback" not in failure
    assert report["attempts"][0]["unknown"] == [
        message("cut_ranks", ranks=[1]),
        message("bad_events", lines=1),
        message("unsampled_hosts", hosts=["host-a"]),
    ]
    assert [say(line) for line in report["attempts"][0]["unknown"]] == [
        "Rank 1 did not finish. The time after the last event is unknown.",
        "1 line of events could not be read and was left out.",
        "Host host-a was not sampled, so causes on GPUs and CPUs there cannot be shown.",
    ]
    text = (run / "report.md").read_text()
    assert "# Run run: failed, 0 of 1 video\n" in text
    assert "Rank 1 failed on host-a, failure, phase denoise, step 3:\n\n    RuntimeError: no\n    more\n" in text
    assert "| 1 (cut off) |" in text
    assert "0000_0: not made" in text


def test_missing_ranks_are_said(tmp_path: Path) -> None:
    run = good_run(tmp_path / "run")
    (run / "attempts/0/telemetry/rank1.jsonl").unlink()
    report = build(run)
    (attempt,) = report["attempts"]
    assert (report["status"], attempt["status"], attempt["missing_ranks"]) == ("complete", "stopped", [1])
    assert message("missing_ranks", ranks=[1]) in attempt["unknown"]
    assert report["efficiency_reason"] == message("ranks_not_finished")


def test_a_run_that_left_nothing(tmp_path: Path) -> None:
    report = build(run := write_run(tmp_path / "run", a_plan(2), [[]]))
    assert (report["status"], report["attempts"][0]["wall_s"]) == ("incomplete", None)
    assert "No rank recorded events." in (run / "report.md").read_text()
    assert summary_lines(report) == ["The run is incomplete: 0 of 1 video made."]
    never_started = build(write_run(tmp_path / "planned", a_plan(2), []))
    assert never_started["attempts"] == []


def test_a_resumed_run_shows_every_attempt(tmp_path: Path) -> None:
    first = [replace(e, end=None) for e in plain_simulation(2).events()]
    run = write_run(tmp_path / "run", a_plan(2), [first, plain_simulation(2).events()], done=["0000_0"])
    report = build(run)
    assert [a["status"] for a in report["attempts"]] == ["stopped", "complete"]
    assert report["status"] == "complete"
    assert report["work"]["row_forwards"] == 18
    assert report["efficiency_reason"] == message("several_attempts", attempts=2)
    text = (run / "report.md").read_text()
    assert "## Where the time went: attempt 0, stopped\n" in text
    assert "## Where the time went: attempt 1, complete\n" in text
    assert "- Attempt 0: Ranks 0, 1 did not finish." in text
    assert "2 attempts" in "".join(summary_lines(report))


@pytest.mark.parametrize("seed", range(20))
def test_reports_of_any_layout_are_of_the_schema(tmp_path: Path, seed: int) -> None:
    sim = random_simulation(seed)
    report = build(write_run(tmp_path / "run", a_plan(sim.world), [sim.events()], done=["0000_0"]))
    assert len(report["attempts"][0]["ranks"]) == sim.world


def test_torn_files_are_said_and_the_rest_is_reported(tmp_path: Path) -> None:
    run = good_run(tmp_path / "run")
    (run / "overrides.json").write_text('["video=2')
    (run / "attempts/0/environment.json").write_text('{"set": [1]}')
    (run / "attempts/0/error.json").write_text('{"rank": "x", "host": "h", "kind": "failure", "message": 3}')
    report = build(run)
    assert (report["command"], report["environment"]["variables"]) == (None, {})
    assert message("command_unknown") in report["unknown"]
    (run / "overrides.json").write_text("{}")
    assert build(run)["command"] is None


def test_the_environment_is_in_the_report(tmp_path: Path) -> None:
    run = good_run(tmp_path / "run")
    environment = {
        "profile": "workstation", "set": {"NCCL_DEBUG": "WARN"}, "taken_away": {"CUDA_LAUNCH_BLOCKING": "1"},
        "kept": {}, "environment": {"NCCL_DEBUG": "WARN", "OMP_NUM_THREADS": "1"},
    }  # fmt: skip
    (run / "attempts/0/environment.json").write_text(json.dumps(environment))
    for rank, nccl in ((0, "2.29.7"), (1, "2.28.1")):
        path = run / f"attempts/0/telemetry/rank{rank}.jsonl"
        head, _, rest = path.read_text().partition("\n")
        versions = {"python": "3.11.7", "torch": "2.13.0", "cuda": "13.0", "nccl": nccl}
        path.write_text(json.dumps(json.loads(head) | {"versions": versions}) + "\n" + rest)
    report = build(run)
    found = report["environment"]
    assert found["variables"] == environment["environment"]
    assert (found["profile"], found["taken_away"]) == ("workstation", {"CUDA_LAUNCH_BLOCKING": "1"})
    assert found["versions"]["torch"] == "2.13.0"
    assert message("rank_versions_differ") in report["unknown"]
    said = "Made by opensora_launch 0.1.0, python 3.11.7, torch 2.13.0, cuda 13.0, nccl 2.28.1, environment workstation"
    assert said in (run / "report.md").read_text()


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run's folder: it has no plan\.json"):
        build_report(tmp_path)
    (tmp_path / "plan.json").write_text('{"schema": 1}')
    with pytest.raises(UserError, match=r"plan\.json cannot be read"):
        build_report(tmp_path)


def test_summary_lines(tmp_path: Path) -> None:
    lines = summary_lines(build(good_run(tmp_path / "20261120-190000")))
    assert lines[:-1] == [
        "Largest loss: loading the weights: 4.00 s, 8% of all ranks' time. Next: exchange",
        "  along ulysses (5%).",
        "where the time went (2 ranks, 49.0 s of all ranks together):",
        "  compute           36.00 s   73%  ######################",
        "  load               4.00 s    8%  ##",
        "  vae                3.00 s    6%  ##",
        "  communication      2.50 s    5%  ##",
        "  setup              1.00 s    2%  #",
        "  text               1.00 s    2%  #",
        "  waiting            1.00 s    2%  #",
        "  save               0.50 s    1%  #",
        "efficiency of the whole job: 87% (1.74x on 2 ranks)",
        "efficiency of denoising alone: 89% (1.78x on 2 ranks)",
        "  baseline, predicted: predicted from run 20261120-190000",
    ]


def test_the_schema_refuses_what_is_not_a_report(tmp_path: Path) -> None:
    Draft202012Validator.check_schema(VALIDATOR.schema)
    report = build(good_run(tmp_path / "run"))
    for change in (
        {"schema": 1},
        {"status": "fine"},
        {"new": 1},
        {"efficiency": {"job": 1}},
        {"attempts": [report["attempts"][0] | {"wall_s": "1"}]},
        {"attempts": [report["attempts"][0] | {"ranks": [report["attempts"][0]["ranks"][0] | {"parts": {}}]}]},
    ):
        assert not VALIDATOR.is_valid(report | change), change
