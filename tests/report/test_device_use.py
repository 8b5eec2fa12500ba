"""Which readings of a node a report takes: those of the ranks' GPUs, under MIG their cards' too, none for CPUs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.report.build import build_report
from opensora_launch.report.wording import message, say
from tests.report.checked import VALIDATOR
from tests.report.synthetic import a_plan, plain_simulation, write_run

CARD = {"index": 0, "uuid": "GPU-c", "name": "A100", "memory_bytes": 40 << 30, "power_limit_w": 400.0}
PARTS = [{"index": 0, "uuid": f"MIG-{n}", "name": "A100 MIG 2g.10gb", "mig_of": "GPU-c", "memory_bytes": 10 << 30}
         for n in range(3)]  # fmt: skip
OTHER = {"index": 1, "uuid": "GPU-other", "name": "A100"}


def report_of(
    tmp_path: Path,
    gpus: Sequence[dict[str, Any]],
    looks: Sequence[dict[str, Any]],
    last: dict[str, Any],
    *,
    device: str = "cpu",
    uuids: Sequence[str | None] = (None, None),
) -> dict[str, Any]:
    """Two ranks of one node, whose sampler saw `looks` of its GPUs each second, and wrote `last` in the end."""
    sim = plain_simulation(2)
    events = [
        replace(e, meta=replace(e.meta, device=device, device_uuid=uuid))
        for e, uuid in zip(sim.events(), uuids, strict=True)
    ]
    run = write_run(tmp_path / "run", a_plan(2), [events], done=["0000_0"])
    lines: list[dict[str, Any]] = [
        {"kind": "meta", "schema": 1, "host": "host-a", "driver": "570", "no_gpus": None, "gpus": gpus}
    ]
    for second in range(26):
        seen = [look | ({"energy_j": 100.0 * second} if "power_w" in look else {}) for look in looks]
        lines.append({"kind": "sample", "time_s": sim.clock(0, second), "host": {}, "ranks": [], "gpus": seen})
    text = "".join(json.dumps(line) + "\n" for line in [*lines, last])
    (run / "attempts/0/telemetry/node-host-a.jsonl").write_text(text)
    report = build_report(run)
    VALIDATOR.validate(report)
    return report


def test_mig_instances_have_their_cards_readings(tmp_path: Path) -> None:
    """Two ranks on two of three instances; the third is somebody's. torch gives UUIDs without NVML's prefix."""
    whole = {"gpu": 0, "power_w": 300.0, "throttled": ["too hot (hardware)"], "memory_used_bytes": 30 << 30,
             "processes": [[n, 1] for n in range(3)]}  # fmt: skip
    part = {"gpu": 0, "memory_used_bytes": 8 << 30, "processes": [[1, 1]]}
    xid = {"kind": "xid", "time_s": 5005.0, "uuid": "GPU-c", "xid": 79}
    looks = [whole, part, part, part, whole]
    report = report_of(tmp_path, [CARD, *PARTS, OTHER], looks, xid, device="cuda", uuids=["GPU-0", "GPU-1"])
    (attempt,) = report["attempts"]
    assert [(g["uuid"], g["ranks"]) for g in attempt["gpus"]] == [("MIG-0", [0]), ("MIG-1", [1])]
    for gpu in attempt["gpus"]:
        assert (gpu["power_mean_w"], gpu["energy_j"], gpu["power_limit_w"]) == (300.0, 2500.0, 400.0)
        assert (gpu["memory_bytes"], gpu["memory_peak_bytes"], gpu["others_share"]) == (10 << 30, 8 << 30, 0.0)
        assert (gpu["throttled"], gpu["xids"]) == ({"too_hot_hardware": 1.0}, [79])
        assert gpu["of_whole_card"] == ["energy_j", "power_limit_w", "power_mean_w", "throttled", "xids"]
    assert [(say(f, "title"), say(f).partition(":")[0]) for f in attempt["findings"]] == [
        ("GPU 0 (whole card) was throttled (host-a, ranks 0, 1)", "Reasons"),
        ("GPU 0 (whole card) reported an error (host-a, ranks 0, 1)", "XID 79"),
    ]
    assert report["energy"]["joules"] == 2500.0
    readings = ["energy_j", "power_limit_w", "power_mean_w", "throttled", "xids"]
    assert attempt["unknown"] == [message("whole_card_readings", readings=readings)]


@pytest.mark.parametrize(("device", "seen"), [("cpu", []), ("cuda", ["GPU-c", "GPU-other"])])
def test_gpus_of_a_host_whose_ranks_have_none(tmp_path: Path, device: str, seen: list[str]) -> None:
    """Ranks on CPUs leave the host's GPUs to others; ranks on GPUs whose UUIDs torch did not tell have some of them."""
    hot = {"gpu": 0, "power_w": 300.0, "throttled": ["too hot (hardware)"]}
    xid = {"kind": "xid", "time_s": 5005.0, "uuid": "GPU-c", "xid": 79}
    report = report_of(tmp_path, [CARD, OTHER], [hot, hot], xid, device=device)
    (attempt,) = report["attempts"]
    assert [g["uuid"] for g in attempt["gpus"]] == seen
    assert len(attempt["findings"]) == 3 * bool(seen)
    assert report["energy"]["joules"] == (5000.0 if seen else None)


def test_a_sampler_that_stopped_is_named(tmp_path: Path) -> None:
    why = {"kind": "problem", "why": "OSError: No space left on device"}
    (attempt,) = report_of(tmp_path, [], [], why)["attempts"]
    assert attempt["unknown"] == [message("samples_ended", host="host-a", why=why["why"])]
