"""The campaign stops and goes on, records what failed, and computes the planner's constants from results."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from _bench import Spread  # noqa: E402
from _gpu import watching  # noqa: E402
from _gpu.campaign import Campaign  # noqa: E402
from _gpu.items import ITEMS  # noqa: E402
from _gpu.notes import Notes, OutOfBudget, failures, read_notes  # noqa: E402
from _gpu.offload import beside  # noqa: E402
from _gpu.refit import refit, with_constants  # noqa: E402
from _gpu.step import OTHERS, kind_of  # noqa: E402
from _gpu.summary import TABLES, write_summary  # noqa: E402

from opensora_launch.plan.times import rates_of  # noqa: E402
from opensora_launch.request.catalogue import read_cards  # noqa: E402
from opensora_launch.schema.config import TopologyConfig  # noqa: E402
from tests.gpu_campaign.results import MACHINE, POINTS, STEP, store  # noqa: E402
from tests.script_module import script_module  # noqa: E402

SCRIPT = str(ROOT / "scripts" / "gpu_campaign")
FACTS = {"size": "tiny", "machine": MACHINE}


def points_of(path: Path) -> dict[str, Any]:
    found = read_notes(path)
    assert found is not None
    points: dict[str, Any] = found["points"]
    return points


def test_a_point_is_stored_at_once_and_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    notes = Notes(path, "a", FACTS)
    notes.point("first", lambda: {"s": Spread(1.0, 0.5, 2.0, 3)})
    assert points_of(path)["first"]["s"]["median"] == 1.0
    again = Notes(path, "a", FACTS)
    again.point("first", lambda: pytest.fail("it was measured before"))
    again.point("second", lambda: {"n": 2})
    again.close()
    assert list(points_of(path)) == ["first", "second"]
    found = read_notes(path)
    assert found is not None
    assert (found["complete"], found["machine"]["torch"]) == (True, "2.11.0+cu130")


def test_a_point_that_fails_is_one_line_and_the_next_goes_on(tmp_path: Path) -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("no kernel image\nmore that nobody reads")

    notes = Notes(tmp_path / "a.json", "a", FACTS)
    notes.point("bad", fails)
    notes.point("good", lambda: {"n": 1})
    notes.close()
    found = read_notes(tmp_path / "a.json")
    assert found is not None
    assert failures(found) == ["bad: RuntimeError: no kernel image"]
    assert found["points"]["good"]["n"] == 1


def test_no_point_starts_after_the_budget(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "a.json", "a", FACTS, until_s=time.monotonic() - 1)
    with pytest.raises(OutOfBudget):
        notes.point("late", lambda: pytest.fail("there was no time left"))


ITEM = """
import json, sys, time
from pathlib import Path
item, out = sys.argv[1], Path(sys.argv[sys.argv.index("--out") + 1])
with (out / "started").open("a") as file:
    file.write(item + "\\n")
data = {"item": item, "complete": True, "error": None, "points": {}}
if item == "slow":
    time.sleep(60)
if item == "crash":
    sys.exit(9)
if item == "wrong":
    data["error"] = "RuntimeError: out of luck"
if item == "later" and not (out / "later.json").exists():
    (out / "later.json").write_text(json.dumps(data | {"complete": False}))
    sys.exit(75)
(out / (item + ".json")).write_text(json.dumps(data))
"""


def campaign(tmp_path: Path, budget_s: float | None = None) -> tuple[Campaign, list[str]]:
    """A campaign whose items are processes that do as their name says."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "item.py").write_text(ITEM)
    said: list[str] = []
    return Campaign(tmp_path, (sys.executable, str(tmp_path / "item.py")), (), budget_s, said.append), said


def started(tmp_path: Path) -> list[str]:
    return (tmp_path / "started").read_text().split()


def test_items_run_once_and_again_when_asked(tmp_path: Path) -> None:
    run, said = campaign(tmp_path)
    assert run.run(["a", "b"], again=False) == 0
    assert run.run(["a", "b"], again=False) == 0
    assert started(tmp_path) == ["a", "b"]
    assert said[-1] == "b: measured before; --again measures it again"
    assert run.run(["b"], again=True) == 0
    assert started(tmp_path) == ["a", "b", "b"]


def test_a_failed_item_is_recorded_and_the_next_goes_on(tmp_path: Path) -> None:
    run, said = campaign(tmp_path)
    assert run.run(["crash", "wrong", "a"], again=False) == 1
    assert started(tmp_path) == ["crash", "wrong", "a"]
    assert [line for line in said if line.startswith("  ")] == [
        "  failed: its process ended with 9 before it had a result",
        "  failed: RuntimeError: out of luck",
    ]
    assert run.run(["crash", "a"], again=False) == 1  # recorded, so it is not tried again, and still no success
    assert started(tmp_path) == ["crash", "wrong", "a"]


def test_an_item_that_stops_for_its_budget_goes_on_in_the_next_call(tmp_path: Path) -> None:
    run, said = campaign(tmp_path, budget_s=100)
    assert run.run(["a", "later", "b"], again=False) == 75
    assert said[-1] == "The budget is used up: 1 of 3 items are done. The same command goes on."
    assert run.run(["a", "later", "b"], again=False) == 0
    assert started(tmp_path) == ["a", "later", "later", "b"]


def test_no_item_starts_after_the_budget(tmp_path: Path) -> None:
    run, _ = campaign(tmp_path, budget_s=1e-9)
    assert run.run(["a"], again=False) == 75
    assert not (tmp_path / "started").exists()


@pytest.mark.slow
def test_an_item_that_outlasts_a_whole_budget_has_failed(tmp_path: Path) -> None:
    assert campaign(tmp_path)[0].run(["a"], again=False) == 0
    run, _ = campaign(tmp_path, budget_s=3)
    assert run.run(["a", "slow"], again=False) == 1
    assert points_of(tmp_path / "slow.json") == {}
    found = read_notes(tmp_path / "slow.json")
    assert found is not None
    assert found["error"] == "it did not end in 4 s"


def test_every_item_has_a_table_and_a_page_of_nothing_says_so(tmp_path: Path) -> None:
    assert set(TABLES) == set(ITEMS)
    text = write_summary(tmp_path).read_text()
    assert text.count("not yet run") == len(ITEMS)


def test_the_page_shows_results_and_failures(tmp_path: Path) -> None:
    for item, points in POINTS.items():
        store(tmp_path, item, points)
    store(tmp_path, "run", {"256px": {"error": "RuntimeError: generate ended with 1"}})
    text = write_summary(tmp_path).read_text()
    assert text.startswith("# Measured on NVIDIA H200\n")
    assert "failed: 256px: RuntimeError: generate ended with 1" in text
    assert "| one row: attention | 6500.0 (65.0% of the kernels) |  | 594 TFLOP/s |  |  |" in text
    assert "| 24 GB | offloaded | 256px | 400.00 (396.00 – 404.00) | 1.250 (1.238 – 1.262) |" in text
    assert "source abcdef1" in text
    assert "rehearsal" not in text
    store(tmp_path, "step", STEP, size="tiny")
    assert "A rehearsal at tiny size" in write_summary(tmp_path).read_text()


def test_refit_prints_yaml_with_the_old_values(tmp_path: Path) -> None:
    for item, points in POINTS.items():
        store(tmp_path, item, points)
    text = refit(tmp_path)
    assert yaml.safe_load(text) == {"matmul_efficiency": 0.8, "attention_efficiency": 0.6}
    assert "matmul_efficiency: 0.8  # was 0.642; 792 of 989 TFLOP/s in a step" in text
    found = {
        line.split(": ")[1]: float(line.split(": ")[2].split()[0]) for line in text.splitlines() if ".py: " in line
    }
    assert found == {
        "MEMORY_EFFICIENCY": 0.5, "block_launch_s": 0.001, "VAE_EFFICIENCY": 0.1, "LINK_EFFICIENCY[pcie]": 0.8,
        "copy_hidden": 1.0, "RESERVED_BYTES": pytest.approx(2**30, rel=1e-3), "USABLE": 0.99, "FRAGMENTS": 1.1,
    }  # fmt: skip


def test_refit_scores_the_planner_before_and_after(tmp_path: Path) -> None:
    store(tmp_path, "step", STEP)
    lines = [line for line in refit(tmp_path).splitlines() if line.startswith("#   rows: ")]
    assert len(lines) == 3
    _, _, measured, before, after = lines[0].split("   ")
    assert measured == "10"
    assert before != after


def test_measured_constants_replace_the_planners() -> None:
    card = read_cards()["h200"]
    before = rates_of(card, TopologyConfig(gpus_per_node=1), "bf16")
    assert with_constants(before, card, {}) == before
    after = with_constants(before, card, {"matmul_efficiency": 0.8, "MEMORY_EFFICIENCY": 0.5, "USABLE": 0.9})
    assert after.matmul_flops == pytest.approx(0.8 * 989.4e12)
    assert after.memory_bytes == pytest.approx(0.5 * 4.8e12)
    assert after.attention_flops == before.attention_flops


def test_refit_of_what_is_missing(tmp_path: Path) -> None:
    assert refit(tmp_path) == f"# no results in {tmp_path}"
    store(tmp_path, "step", {"kinds": {"error": "RuntimeError: no CUPTI"}}, size="tiny")
    text = refit(tmp_path)
    assert "matmul_efficiency: not measured" in text
    assert "do not paste" in text
    store(tmp_path, "step", STEP, machine=MACHINE | {"card": "fake", "gpu": "Fake GPU"})
    assert "Fake GPU is not in configs/hardware" in refit(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention)", "attention"),
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_bias_TNT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "products"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("at::native::CatArrayBatchedCopy<at::native::OpaqueType<2u>>", "copies"),
        ("void at::native::vectorized_layer_norm_kernel<c10::BFloat16, float>", OTHERS),
    ],
)
def test_kernels_are_told_apart_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_transfer_is_hidden_as_far_as_the_step_does_not_grow() -> None:
    found = beside([1.0], [1.1], Spread(0.4, 0.4, 0.4, 1))
    assert found["exposed_s"] == pytest.approx(0.1)
    assert found["hidden_share"] == pytest.approx(0.75)
    assert beside([1.0], [0.9], Spread(0.4, 0.4, 0.4, 1))["hidden_share"] == 1.0


def test_readings_of_nvidia_smi_are_put_beside_the_samplers() -> None:
    theirs = watching.smi_values("1024, 350.5, 1980, [N/A], 55, 90\n")
    found = watching.compared(theirs, {"memory_used_bytes": 2**30, "power_w": 351.0, "util": 0.9}, {"power_w": 350.0})
    assert found["memory_used_bytes"] == {"nvidia_smi": 2**30, "before": 2**30, "after": None}
    assert found["power_w"] == {"nvidia_smi": 350.5, "before": 351.0, "after": 350.0}
    assert found["memory_mhz"]["nvidia_smi"] is None
    assert found["util"]["nvidia_smi"] == pytest.approx(0.9)


BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("av", "hydra", "msgspec", "omegaconf", "diffusers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.path[:0] = sys.argv[1:]
import _gpu.ceilings, _gpu.load, _gpu.memory, _gpu.offload, _gpu.refit, _gpu.running, _gpu.share, _gpu.step
import _gpu.summary, _gpu.vae, _gpu.watching
"""


@pytest.mark.slow
def test_a_machine_needs_little_more_than_torch() -> None:
    """The items say at their start what they lack; none keeps another from running."""
    argv = [sys.executable, "-c", BARE, str(ROOT / "scripts"), str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["stepp"], "stepp: unknown; the items are run, memory"),
        (["summary", "step"], "summary and refit stand alone"),
        (["--budget-s", "0"], "--budget-s 0 must be more than 0"),
        (["step"], "error: topology.device=cuda, but torch sees no GPU"),
    ],
)
def test_mistakes_are_one_line(words, problem, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *words])
    with pytest.raises(SystemExit, match="2"):
        sys.exit(script_module("gpu_campaign").main())
    assert problem in capsys.readouterr().err


@pytest.mark.slow
def test_one_item_runs_on_a_cpu_through_the_command(tmp_path: Path) -> None:
    words = ["ceilings", "--size", "tiny", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "ceilings.json").read_text())
    assert found["points"]["products"]["shapes"]["square"]["tflops"] > 0
    assert {"gpu", "driver", "cuda", "cudnn", "torch", "python", "commit", "made"} <= found["machine"].keys()
    assert "| ceilings | " in (tmp_path / "summary.md").read_text()
