"""The scores of the planner: what scripts/validate_plan.py prints, on the shipped rows and on others."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "validate_plan.py"
PUBLISHED = ROOT / "docs" / "benchmarks" / "published_scaling.json"
PAGE = ROOT / "docs" / "prediction.md"


def scores(*words: str) -> Any:
    done = subprocess.run([sys.executable, str(SCRIPT), "--json", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@cache
def published() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(PUBLISHED.read_text())
    return rows


def write(folder: Path, rows: list[Any]) -> str:
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    return str(file)


def of_table(name: str, **changes: Any) -> list[dict[str, Any]]:
    return [row | changes for row in published() if row["table"] == name]


def test_one_table_of_each_link(tmp_path: Path) -> None:
    tables = ("wan2.2-t2v-a14b-720p-h20", "xdit-cogvideox-5b-480p-l40-step")
    found = scores("--data", write(tmp_path, [row for table in tables for row in of_table(table)]))
    assert set(found) >= {"median_abs_error", "layout_order", "rows"}
    assert found["median_abs_error"]["nvlink"] < 0.07
    assert found["median_abs_error"]["pcie"] < 0.15
    assert found["layout_order"] == 1.0
    assert found["layout_pairs"] == 5
    assert len(found["rows"]) == 17
    for row in found["rows"]:
        assert row["error"] == pytest.approx(row["predicted_s"] / row["seconds"] - 1)
        assert row["errors"]["table"] is not None


def test_models_and_cards_that_only_the_file_names(tmp_path: Path) -> None:
    new = {"gpu": "Foo X9", "model": "NewVideo", "hidden": 6144, "layers": 48, "heads": 48, "params": "30B"}
    rows = of_table("wan2.2-t2v-a14b-720p-h20", table="new", source="acme/new README", **new)
    found = scores("--data", write(tmp_path, [*rows, {"usable": True, "table": "broken"}, {"usable": False}]))
    assert found["median_abs_error"]["pcie"] is None
    assert found["layout_order"] is None
    assert [row.get("gpu") for row in found["rows"]] == ["foo_x9"] * 3 + [None]
    assert "not predictable" in found["rows"][3]["why"]
    eight = found["rows"][2]
    assert (eight["n_gpus"], eight["layout"]["ulysses"]) == (8, 8)
    assert abs(eight["errors"]["largest"]) < 0.1  # from its own rows on 1 and 4 GPUs


def test_twice_the_seconds_are_twice_the_error(tmp_path: Path) -> None:
    """Left-out rows do not reach the fit: doubling a table's seconds halves its prediction's share of them."""
    table = "wan2.2-i2v-a14b-720p-h100"
    plain = scores("--data", write(tmp_path, of_table(table)))["rows"]
    double = [row | {"seconds": 2 * row["seconds"]} for row in of_table(table)]
    doubled = scores("--data", write(tmp_path, double))["rows"]
    for a, b in zip(plain, doubled, strict=True):
        assert b["predicted_s"] == pytest.approx(a["predicted_s"], rel=0.03)
        assert b["error"] == pytest.approx(a["predicted_s"] / a["seconds"] / 2 - 1, abs=0.03)


def test_rows_that_say_nothing_are_left_out_with_why(tmp_path: Path) -> None:
    good = of_table("wan2.2-t2v-a14b-720p-h20")
    wrong = [
        ("link=None must be nvlink or pcie", good[0] | {"link": None}),
        ("link=nv must be nvlink or pcie", good[0] | {"link": "nv"}),
        ("layout=None must give the degrees", good[0] | {"layout": None}),
        ("layout.ulysses=-2 must be 1, 2, ...", good[0] | {"layout": {"ulysses": -2}}),
        ("seconds=0 must be a number above 0", good[0] | {"seconds": 0}),
        ("seconds=nan must be a number above 0", good[0] | {"seconds": float("nan")}),
        ("n_gpus=0 must be 1, 2, ...", good[0] | {"n_gpus": 0}),
        ("nodes=-1 must be 1, 2, ...", good[0] | {"nodes": -1}),
        ("gpu=None must be a name", good[0] | {"gpu": None}),
        ("table=['a'] must be a name", good[0] | {"table": ["a"]}),
        ("a measurement must be an object, not str", "row"),
        ("link=None must be nvlink or pcie, layout=", good[0] | {"link": None, "layout": [2]}),
    ]
    rows: list[Any] = [*good, *(row for _, row in wrong)]
    found = scores("--data", write(tmp_path, rows))["rows"]
    assert [row["error"] is not None for row in found[: len(good)]] == [True] * len(good)
    assert len(found) == len(rows)
    for (said, _), row in zip(wrong, found[len(good) :], strict=True):
        assert said in row["why"]
    text = subprocess.run([sys.executable, str(SCRIPT), "--data", str(tmp_path / "rows.json")], capture_output=True)
    assert b"measurement 3 is not predictable: link=None" in text.stdout


def test_a_file_that_is_no_list_of_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("{}")
    argv = [sys.executable, str(SCRIPT), "--data", str(tmp_path / "rows.json")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    reason = "it must be a list of measurements"
    assert done.stderr.splitlines() == [f"error: {tmp_path / 'rows.json'} cannot be read: {reason}"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--data", str(tmp_path / "no")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "cannot be read" in done.stderr


def test_the_catalogue_has_the_constants_of_the_page() -> None:
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 9
    for name, *shares in rows:
        card = yaml.safe_load((ROOT / "configs" / "hardware" / f"{name}.yaml").read_text())
        stored = [card["matmul_efficiency"], card["attention_efficiency"], card["link_efficiency"]]
        assert stored == pytest.approx([float(share) for share in shares], rel=0.03), name


def test_a_card_with_more_memory_is_no_faster_for_it() -> None:
    cards = {
        name: yaml.safe_load((ROOT / f"configs/hardware/{name}.yaml").read_text()) for name in ("h100_sxm", "h200")
    }
    names = ("bf16_tflops", "nvlink_gb_s", "matmul_efficiency", "attention_efficiency", "link_efficiency")
    assert [cards["h200"][name] for name in names] == [cards["h100_sxm"][name] for name in names]


def test_the_page_has_every_usable_row_and_the_true_efficiencies() -> None:
    text = PAGE.read_text()
    for table in {row["table"] for row in published() if row["usable"]}:
        part = text.partition(f"**{table}**")[2].partition("\n\n**")[0]
        shown = [line for line in part.splitlines() if re.match(r"\| \d", line)]
        assert len(shown) == len([row for row in published() if row["usable"] and row["table"] == table])
    for efficiency in ("95.9%", "88.8%", "75.0%", "44.1%"):
        assert efficiency in text


def test_the_page_has_what_the_planner_predicts_now_and_what_it_misses() -> None:
    code = (
        f"import sys\nsys.path[:0] = [{str(ROOT / 'scripts')!r}, {str(ROOT)!r}]\n"
        "from prediction.document import open_sora\nprint(*open_sora(), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in PAGE.read_text(), "scripts/validate_plan.py --write brings the page up to date"
    aims = [line for line in done.stdout.splitlines() if "missed by" in line or "reached;" in line]
    assert [line.split(" ")[1] for line in aims] == ["under", "2x", "efficiency"]
    assert "Why: 80 row-forwards instead of 150 make denoising 1.88x as fast" in done.stdout
