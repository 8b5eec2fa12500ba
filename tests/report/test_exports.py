"""trace.json for Perfetto and metrics.prom for Prometheus, of runs on GPUs, on CPUs and without readings."""

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from opensora_launch.report.gpu_errors import XIDS
from opensora_launch.report.markdown import summary_lines
from opensora_launch.report.metrics import METRIC_HELP
from opensora_launch.report.rates import Prices
from opensora_launch.report.wording import LANGUAGES, say
from tests.report.checked import build
from tests.report.sampled import on_gpus
from tests.report.synthetic import Simulation, a_plan, plain_simulation, write_run

PRICES = Prices(usd_per_gpu_hour=2.0)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Two CPU ranks, rank 1 slow; nobody took readings."""
    slow = plain_simulation(2, slow=[1.0, 1.5])
    return write_run(tmp_path / 'ru"n', a_plan(2), [slow.events()], done=["0000_0"])


@pytest.fixture
def sampled(bare: Path) -> Path:
    """The same on two GPUs, with readings."""
    on_gpus(bare)
    return bare


def on_cpus(run: Path) -> Path:
    """Give a run readings of its host and its ranks, and of no GPU."""
    clock = Simulation(1, ["host-a"]).clock
    lines: list[dict[str, Any]] = [
        {
            "kind": "meta",
            "schema": 1,
            "host": "host-a",
            "interval_s": 1.0,
            "driver": None,
            "no_gpus": "none",
            "gpus": [],
        }
    ]
    for n in range(20):
        host = {"cpu_busy_s": 3.0 * n, "cpu_all_s": 4.0 * n, "memory_bytes": 1 << 38, "available_bytes": 1 << 37}
        ranks = [
            {"rank": r, "memory_bytes": 1 << 30, "ran_s": 0.75 * n, "starved_s": 0.25 * n, "major_faults": 0}
            for r in range(2)
        ]
        lines.append({"kind": "sample", "time_s": clock(0, 1.0 * n), "host": host, "ranks": ranks, "gpus": []})
    node = run / "attempts/0/telemetry/node-host-a.jsonl"
    node.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def traced(run: Path) -> list[dict[str, Any]]:
    build(run)
    found: list[dict[str, Any]] = json.loads((run / "trace.json").read_text())["traceEvents"]
    return found


def test_spans_begin_at_the_start_of_the_run(bare: Path) -> None:
    spans = [e for e in traced(bare) if e["ph"] == "X"]
    assert {e["pid"] for e in spans} == {0, 1}
    steps = [e for e in spans if e["tid"] == 1]
    assert len(steps) == 10
    assert min(e["ts"] for e in spans) == 0


def test_every_process_and_thread_has_events(bare: Path) -> None:
    for run in (bare, on_cpus(bare)):
        trace = traced(run)
        named = {(e["pid"], e["tid"] if e["name"] == "thread_name" else None) for e in trace if e["ph"] == "M"}
        used = {(e["pid"], e["tid"]) for e in trace if e["ph"] == "X"} | {
            (e["pid"], None) for e in trace if e["ph"] != "M"
        }
        assert named == used


def test_waiting_and_transfer_are_apart_and_arrows_lead_from_the_last(bare: Path) -> None:
    """Rank 1 comes last to each of the five collectives; rank 0 waits for it before the transfer of 0.25 s."""
    trace = traced(bare)
    collectives = [e for e in trace if e["ph"] == "X" and e["tid"] == 4]
    assert Counter((e["pid"], e["name"]) for e in collectives) == {
        (0, "wait for rank 1"): 5, (0, "ulysses"): 5, (1, "ulysses"): 5,
    }  # fmt: skip
    assert {e["dur"] for e in collectives if e["name"] == "ulysses"} == {0.25e6}
    starts = {e["id"]: e for e in trace if e["ph"] == "s"}
    ends = {e["id"]: e for e in trace if e["ph"] == "f"}
    assert len(starts) == 5
    assert starts.keys() == ends.keys()
    begun = {(e["pid"], e["ts"]) for e in collectives if e["name"] == "ulysses"}
    for number, start in starts.items():
        assert (start["pid"], ends[number]["pid"]) == (1, 0)
        assert {(1, start["ts"]), (0, ends[number]["ts"])} <= begun


def test_counters_of_cpu_ranks_and_their_host(bare: Path) -> None:
    counters = [e for e in traced(on_cpus(bare)) if e["ph"] == "C"]
    seen = {(e["pid"], e["name"]): e["args"] for e in counters}
    assert seen == {
        (100_000, "share of all CPUs"): {"share": 0.75},
        (100_000, "available memory"): {"bytes": 1 << 37},
        **{(r, "share of a core"): {"share": 0.75} for r in range(2)},
        **{(r, "share of time without a core"): {"share": 0.25} for r in range(2)},
        **{(r, "memory"): {"bytes": 1 << 30} for r in range(2)},
    }


def test_counters_of_gpus_and_an_xid(sampled: Path) -> None:
    trace = traced(sampled)
    assert {e["name"] for e in trace if e["ph"] == "C"} >= {"GPU 0 power_w", "GPU 1 nvlink_tx_bytes_per_s"}
    assert [(e["name"], e["args"]["gpu"]) for e in trace if e["ph"] == "i"] == [("XID 79", "GPU-1")]


def test_metrics_are_strict_openmetrics(sampled: Path) -> None:
    report = build(sampled, prices=PRICES)
    families = {f.name: f for f in text_string_to_metric_families((sampled / "metrics.prom").read_text())}
    assert {name.removeprefix("opensora_") for name in families} == METRIC_HELP.keys() - {"mfu_ratio"}
    assert all(f.documentation for f in families.values())
    units = {f.unit for f in families.values()}
    assert units >= {"seconds", "bytes", "bytes_per_second", "joules", "watts", "celsius", "ratio", "usd"}
    seconds = {(s.labels["rank"], s.labels["part"]): s.value for s in families["opensora_rank_seconds"].samples}
    assert seconds["0", "compute"] == 18.0
    assert {s.labels["run"] for f in families.values() for s in f.samples} == {report["run"]}
    (cost,) = families["opensora_cost_usd"].samples
    assert cost.value == report["cost"]["usd"]


def test_promtool_finds_nothing_to_mend(sampled: Path) -> None:
    """It reads Prometheus' own text format, as node_exporter does, and knows the rules for names, units and help."""
    if not (promtool := shutil.which("promtool")):
        pytest.skip("promtool is not installed")
    build(sampled, prices=PRICES)
    with (sampled / "metrics.prom").open("rb") as metrics:
        done = subprocess.run([promtool, "check", "metrics"], stdin=metrics, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_metrics_of_a_run_without_events(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", a_plan(2), [[]], done=["0000_0"])
    build(run)
    families = list(text_string_to_metric_families((run / "metrics.prom").read_text()))
    assert [f.name for f in families] == ["opensora_videos_asked", "opensora_videos_done"]


def test_errors_of_a_gpu_come_first_and_say_what_to_do(sampled: Path) -> None:
    said = " ".join(" ".join(summary_lines(build(sampled))).split())
    assert "GPU 1 reported an error (host-a, rank 1). XID 79: the GPU is no longer reachable over PCIe. Restart" in said
    assert "1 memory error that ECC could not correct. Make the videos again on another GPU" in said


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_xid_has_a_meaning_and_a_remedy(language: str) -> None:
    for meaning in XIDS.values():
        what, remedy = say(meaning, language=language), say(meaning, "remedy", language)
        assert len({what, remedy, meaning["code"]}) == 3
