"""Published seconds of video models on several GPUs, to draw beside a run. Copied, not measured here.

Efficiency is recomputed from the seconds. Sources: README of hpcaitech/Open-Sora (2.0, 50 steps, 129 frames), README
of Tencent-Hunyuan/HunyuanVideo (xDiT), README of Wan-Video/Wan2.2. One-GPU rows of Wan use offload, which flatters the
others.
"""

from typing import Any

PEERS: dict[str, dict[int, float]] = {
    "Open-Sora 2.0, 768px, H100": {1: 1656.0, 2: 863.0, 4: 466.0, 8: 276.0},
    "Open-Sora 2.0, 256px, H100": {1: 60.0, 2: 40.0, 4: 34.0},
    "HunyuanVideo, 720p, H100": {1: 1904.08, 2: 934.09, 4: 514.08, 8: 337.58},
    "Wan2.2 A14B, 720p, H100": {1: 1041.5, 4: 288.7, 8: 155.1},
}


def peer_lines() -> list[dict[str, Any]]:
    """One line a table: name and points (gpus, seconds, speedup, efficiency)."""
    return [{"name": name, "points": points_of(seconds)} for name, seconds in PEERS.items()]


def points_of(seconds: dict[int, float]) -> list[dict[str, Any]]:
    """Speed-up and efficiency of each count over the smallest one."""
    base = min(seconds)
    return [
        {
            "gpus": n,
            "seconds": t,
            "speedup": seconds[base] / t * base,
            "efficiency": seconds[base] * base / (t * n),
        }
        for n, t in sorted(seconds.items())
    ]
