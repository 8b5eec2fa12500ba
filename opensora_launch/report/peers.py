"""Published seconds of video models on several GPUs, to draw beside a run. Copied, not measured here.

Efficiency is recomputed from the seconds. Sources: README of hpcaitech/Open-Sora (2.0, 50 steps, 129 frames), README
of Tencent-Hunyuan/HunyuanVideo (xDiT), README of Wan-Video/Wan2.2. HunyuanVideo's two-GPU cell is left out: its README
and xDiT's document differ in it, and the README's number stands in another table of xDiT's.
"""

from dataclasses import dataclass
from typing import Any

OFFLOAD_ONE = "its one-GPU run keeps weights in host memory (offload), which flatters the other counts"
OFFLOAD_ALL = "all its runs keep weights in host memory (offload)"
OFFLOAD_MAYBE = "its one-GPU run may have kept weights in host memory (offload), which would flatter the other counts"


@dataclass(frozen=True)
class Peer:
    """Seconds by count of GPUs, and what weakens them."""

    name: str
    seconds: dict[int, float]
    note: str | None = None


PEERS = (
    Peer("Open-Sora 2.0, 768px, H100", {1: 1656.0, 2: 863.0, 4: 466.0, 8: 276.0}),
    Peer("Open-Sora 2.0, 256px, H100", {1: 60.0, 2: 40.0, 4: 34.0}, OFFLOAD_ALL),
    Peer("HunyuanVideo, 720p, H100", {1: 1904.08, 4: 514.08, 8: 337.58}, OFFLOAD_MAYBE),
    Peer("Wan2.2 A14B, 720p, H100", {1: 1041.5, 4: 288.7, 8: 155.1}, OFFLOAD_ONE),
)


def peer_lines() -> list[dict[str, Any]]:
    """One line a table: name, note and points (gpus, seconds, speedup, efficiency)."""
    return [{"name": peer.name, "note": peer.note, "points": points_of(peer.seconds)} for peer in PEERS]


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
