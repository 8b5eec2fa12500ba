"""Tables in the documents say what the result files say, and the helpers of the benchmarks compute what they claim."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.script_module import script_module

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "benchmarks"


def test_the_table_of_correctness_is_the_json():
    correctness = script_module("correctness")
    result = json.loads((RESULTS / "correctness.json").read_text())
    page = (ROOT / "docs" / "correctness.md").read_text()
    assert f"<!-- table -->\n{correctness.table_text(result)}\n<!-- /table -->" in page


def test_every_reference_case_was_run_on_every_layout():
    correctness = script_module("correctness")
    result = json.loads((RESULTS / "correctness.json").read_text())
    cases = correctness.reference_cases()
    assert len(cases) == 16
    assert result["tolerances"] == correctness.bounds(cases)
    assert list(result["layouts"]) == list(correctness.LAYOUTS)
    compared = {(case, tensor) for case, tensors in result["tolerances"].items() for tensor in tensors}
    for name, start in result["layouts"].items():
        assert {(line["case"], line["tensor"]) for line in start["lines"]} == compared, name
        assert all(line["ok"] for line in start["lines"]), name
        assert {line["ranks"] for line in start["lines"]} == {correctness.LAYOUTS[name][0]}


def test_a_tensor_that_is_not_compared_is_no_yes():
    correctness = script_module("correctness")
    line = {"case": "a", "max_abs_stored": 1e-5, "max_abs_one_rank": 2e-6, "ok": True}
    bound = {"atol": 1e-4, "rtol": 1e-4}
    result: dict[str, Any] = {
        "tolerances": {"a": {"x": bound, "y": bound}},
        "layouts": {"ring 2": {"ranks": 2, "lines": [line]}},
    }
    row = "| a | ring 2 | 2 | 1.0e-05 | 2.0e-06 | 0.0001 + 0.0001 × \\|x\\| |"
    assert correctness.table(result).splitlines()[-1] == f"{row} NO |"
    result["layouts"]["ring 2"]["lines"] = [line, line | {"max_abs_stored": 3e-5}]
    assert correctness.table(result).splitlines()[-1] == f"{row.replace('1.0e-05', '3.0e-05')} yes |"


def test_pages_list_every_result():
    text = (RESULTS / "README.md").read_text()
    assert sorted(p.name for p in RESULTS.glob("*.json") if p.name not in text) == []


def test_the_results_hold_what_the_pages_say():
    t2v, i2v = json.loads((RESULTS / "bench_rows.json").read_text())["results"]
    assert (t2v["row_forwards"], i2v["row_forwards"]["pruned"]) == ({"pruned": 80, "three rows": 150}, 110)
    assert t2v["speed_up"]["median"] >= 1.7
    assert t2v["same"]
    assert i2v["same"]
    step = json.loads((RESULTS / "bench_step.json").read_text())
    assert max(ratio["median"] for ratio in step["ratios_of_cpu_time"].values()) <= 1.05
    assert max(step["relative_difference_of_compiled"].values()) <= 1e-4
    raced = [
        way for race in json.loads((RESULTS / "bench_parallel.json").read_text())["results"] for way in race["ways"]
    ]
    assert max(way["max_abs_difference"] for way in raced) < 1e-4
    for clock in ("wall", "cpu"):
        found = [way[f"ours_to_this_{clock}"] for way in raced if f"ours_to_this_{clock}" in way]
        assert len(found) == 3 * (4 + 5)
        assert max(ratio["low"] for ratio in found) <= 1, "slower than a rival, by more than the spread"


def test_ratios_are_taken_round_by_round():
    bench = script_module("_bench.py")
    assert bench.ratios([2.0, 30.0, 8.0], [1.0, 10.0, 8.0]) == bench.Spread(2.0, 1.0, 3.0, 3)
    assert bench.spread([5.0, 1.0, 2.0, 3.0, 4.0]) == bench.Spread(3.0, 2.0, 4.0, 5)
    assert bench.spread([1.0]).text(1e3, 0) == "1000 (1000 – 1000)"


def test_runs_take_turns_and_turn_round():
    bench = script_module("_bench.py")
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = bench.interleaved({"a": lambda: run("a"), "b": lambda: run("b")}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_only_what_stands_between_the_markers_changes():
    bench = script_module("_bench.py")
    page = "a\n<!-- t -->\nold\n<!-- /t -->\nb\n"
    assert bench.between_markers(page, "t", "new") == "a\n<!-- t -->\nnew\n<!-- /t -->\nb\n"
    with pytest.raises(ValueError, match="<!-- u -->"):
        bench.between_markers(page, "u", "new")


def test_an_overhead_is_against_the_same_work_without_exchange(monkeypatch):
    """4 ranks that need 30 ms together for what takes each of them 100 ms alone: 4 * 30 / 100."""
    parallel = script_module("bench_parallel")

    def way(name: str, seconds: float, **more: object) -> dict[str, object]:
        times = {"wall_s": [seconds], "cpu_s": [2 * seconds]}
        return {"way": name, "alone": "alone", "rival": None, "max_abs_difference": 0.0, **times, **more}

    rows = parallel.summary([way("alone", 0.1), way("ours", 0.03), way("theirs", 0.06, rival="ours")], world=4)
    assert "overhead_wall" not in rows[0]
    assert rows[1]["overhead_wall"].median == pytest.approx(1.2)
    assert rows[2]["overhead_cpu"].median == pytest.approx(2.4)
    assert rows[2]["ours_to_this_wall"].median == pytest.approx(0.5)


def test_the_page_of_quality_is_the_json():
    quality = script_module("eval_quality")
    result = json.loads((RESULTS / "eval_quality.json").read_text())
    page = (ROOT / "docs" / "quality.md").read_text()
    tuned, scored = result["tuning"], result["presets"]
    ways = quality.table(tuned["rows"], tuned["exact"], quality.front(tuned["rows"]))
    assert f"<!-- ways -->\n{ways}\n\nMeasured, " in page
    assert f"<!-- presets -->\n{quality.table(scored['rows'], scored['exact'], ())}\n\nMeasured, " in page
    assert [quality.asdict(quality.preset(name).guidance) for name in quality.PRESETS] == list(
        result["settings"].values()
    )


def test_presets_are_the_best_of_those_that_compute_so_much_less():
    quality = script_module("eval_quality")
    tuned = json.loads((RESULTS / "eval_quality.json").read_text())["tuning"]
    ways = {
        (way.kind, way.setting): way.guidance for way in quality.ways((1.0, 0.0)) if way.guidance != quality.DEFAULTS
    }
    for name, times in (("balanced", 1.5), ("fast", 2.5)):
        enough = [row for row in tuned["rows"] if tuned["exact"]["forwards"] >= times * row["forwards"]]
        best = max(enough, key=lambda row: row["psnr"])
        assert quality.preset(name).guidance == ways[best["kind"], best["setting"]]


def test_presets_keep_what_they_promise():
    """`balanced` loses one clip of the 120 at most, and is 30 dB from the exact ones; `fast` loses two points."""
    scored = json.loads((RESULTS / "eval_quality.json").read_text())["presets"]
    exact, (balanced, fast) = scored["exact"], scored["rows"]
    assert balanced["right"] >= exact["right"] - 1 / 119
    assert balanced["psnr"] >= 30
    assert fast["right"] >= exact["right"] - 0.02
