"""What a sampler leaves of two GPUs, and runs whose two ranks are made to have computed on them."""

import json
from pathlib import Path
from typing import Any

from tests.report.synthetic import Simulation


def samples() -> str:
    """A node with two GPUs, the last of them hot, as a sampler leaves it; by the clock of simulated runs."""
    clock = Simulation(1, ["host-a"]).clock
    gpus = [
        {"index": n, "uuid": f"GPU-{n}", "name": "Stub GPU", "memory_bytes": 80 << 30, "power_limit_w": 700.0,
         "sm_mhz_max": 1980} for n in range(2)
    ]  # fmt: skip
    meta = {"kind": "meta", "schema": 1, "host": "host-a", "interval_s": 0.5, "driver": "570", "no_gpus": None}
    lines: list[dict[str, Any]] = [meta | {"gpus": gpus}]
    for n in range(70):
        rows = [
            {"gpu": g, "util": 0.9 - 0.3 * g, "memory_used_bytes": (20 + n // 9) << 30, "power_w": 600 - 200 * g + n,
             "energy_j": 500.0 * n, "sm_mhz": 1980 - 700 * g, "temperature_c": 60 + 30 * g,
             "nvlink_tx_bytes": n << 33, "nvlink_rx_bytes": n << 32, "pcie_tx_bytes_per_s": 2e9 + 1e7 * n,
             "pcie_rx_bytes_per_s": 1e9 + 1e7 * n, "ecc_corrected": 3 * g * (n > 30), "ecc_uncorrected": g * (n > 40),
             "throttled": ["too hot (hardware)"] if g else []} for g in range(2)
        ]  # fmt: skip
        host = {"cpu_busy_s": 1.0 * n, "cpu_all_s": 4.0 * n, "memory_bytes": 1 << 38, "available_bytes": 1 << 37}
        lines.append({"kind": "sample", "time_s": clock(0, 0.5 * n), "host": host, "ranks": [], "gpus": rows})
    lines.append({"kind": "xid", "time_s": clock(0, 12.0), "uuid": "GPU-1", "xid": 79})
    lines.append({"kind": "refused", "readings": {"processes": "Not Supported"}})
    return "".join(json.dumps(line) + "\n" for line in lines)


def on_gpus(run: Path) -> None:
    """Put a run's two ranks on those GPUs."""
    (run / "attempts/0/telemetry/node-host-a.jsonl").write_text(samples())
    for r in range(2):
        path = run / f"attempts/0/telemetry/rank{r}.jsonl"
        head, _, rest = path.read_text().partition("\n")
        more = {"device_uuid": f"GPU-{r}", "device": "cuda", "versions": {"torch": "2.13.0"}}
        path.write_text(json.dumps(json.loads(head) | more) + "\n" + rest)
