"""Results of a campaign with round numbers, as its items write them."""

import json
from pathlib import Path
from typing import Any

MACHINE = {
    "made": "2026-11-29T12:00:00+00:00", "commit": None, "source": "abcdef123456", "cpu": "CPU", "gpu": "NVIDIA H200",
    "card": "h200", "driver": "580.1", "cuda": "13.0", "cudnn": 91500, "torch": "2.11.0+cu130", "python": "3.12.3",
}  # fmt: skip


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median * 0.99, "high": median * 1.01, "samples": 5}


def rows_of(seconds: float, rows: int) -> dict[str, Any]:
    return {
        "s": spread(rows * seconds), "tflops": 500.0, "time_over_one_row": spread(rows), "predicted_s": None,
        "allocated_bytes": 30 * 2**30, "reserved_bytes": 33 * 2**30, "predicted_bytes": 29 * 2**30,
    }  # fmt: skip


STEP: dict[str, Any] = {
    "launch": {"tokens": 32, "s": spread(0.057), "blocks": 57, "per_block_s": 0.001},
    "kinds": {
        "kinds": {
            "products": {"s": 2.5, "share": 0.25, "tflops": 791.52},  # 0.8 of 989.4
            "attention": {"s": 6.5, "share": 0.65, "tflops": 593.64},  # 0.6
            "norms, rotation, modulation": {"s": 0.75, "share": 0.075, "tflops": None},
            "copies": {"s": 0.25, "share": 0.025, "tflops": None},
        },
        "elementwise_bytes": 2.4e12,  # in 1 s: half of 4.8 TB/s
    },
    "rows": {"flops_per_row": 6e15, "tokens": 76544, "finite": True, **{str(n): rows_of(10.0, n) for n in (1, 2, 3)}},
}
POINTS: dict[str, dict[str, Any]] = {
    "step": STEP,
    "memory": {
        "set aside": {"outside_bytes": {"context": 2**29, "convolutions": 2**30}, "planned_bytes": 1.2 * 2**30,
                      "usable_share": 0.99}
    },
    "vae": {"decode": {"s": 40.0, "tiles": [{"s": 2.0}, {"s": 1.0}], "allocated_bytes": 2**33,
                       "planned_flops_per_s": 98.94e12}},
    "ceilings": {"copies": {"to the device, pinned": {"s": spread(0.02), "gb_s": 50.4}}},
    "offload": {
        "24 GB": {
            "placement": "offloaded", "transfer_s": spread(0.5),
            "256px": {"whole_s": spread(0.4), "placed_over_whole": spread(1.25), "exposed_s": 0.1, "hidden_share": 0.8,
                      "equal_bits": True, "allocated_bytes": 2**34},
        }
    },
}  # fmt: skip


def store(out: Path, item: str, points: dict[str, Any], **changes: Any) -> None:
    data = {
        "item": item, "kind": "measured", "size": "full", "machine": MACHINE, "complete": True, "error": None,
        "points": points, **changes,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{item}.json").write_text(json.dumps(data))
