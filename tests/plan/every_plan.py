"""Print the best plan for every card, size and number of GPUs. tests/plan/test_choose.py compares the output.

It runs in a separate process, which is fast because shapes are not checked there.
"""

import math
from pathlib import Path

import yaml

from opensora_launch.plan.make_plan import predict
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.placement import placement_text
from opensora_launch.plan.plan import Machine, VideoRequest
from opensora_launch.plan.rows import Guidance
from opensora_launch.plan.table import layout_text
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import RunConfig, VideoConfig

FOLDER = Path(__file__).parents[2] / "configs" / "hardware"
COUNTS = (1, 2, 3, 4, 8, 16, 32, 64)
VIDEO = VideoRequest("0000_0", "rain", "rain.", "", (), "t2v", 42, Guidance(50, 7.5, 3.0, True, True, False))
HEAD = """\
GPUs, predicted seconds with the weights loaded, efficiency compared with one such GPU with unlimited memory, peak GiB
per GPU, placement of the weights (replicated if that fits, else divided by tp or placed, by time), layout of the steps
with 2 rows and with 1 row.
Open-Sora 2.0, one text-to-video of 129 frames, 50 steps; nodes of 8 GPUs.
"""


def line_of(card: Card, gpus: int, size: str) -> str:
    machine = Machine("cuda", math.ceil(gpus / 8), min(gpus, 8), 16)
    _, found = predict(RunConfig(video=VideoConfig(size), hardware=card), machine, [VIDEO])
    best = found[0]
    if not best.fits:
        return f"{gpus:>4}  does not fit"
    layouts = ", ".join(layout_text(layout) for _, layout in reversed(best.layouts))
    numbers = f"{best.phases.making:>8.1f} s  {best.efficiency:>6.1%}  {best.memory.peak / GIB:>5.1f} GiB"
    return f"{gpus:>4}  {numbers}  {placement_text(best.placement):<44}  {layouts}"


def main() -> None:
    blocks = [HEAD]
    for file in sorted(FOLDER.glob("*.yaml")):
        if file.stem == "auto":
            continue
        card = Card(**yaml.safe_load(file.read_text()))
        for size in ("256px", "768px"):
            lines = [line_of(card, gpus, size) for gpus in COUNTS]
            blocks.append(f"{card.name}, {card.memory_gib:g} GiB, {size}\n" + "\n".join(lines) + "\n")
    print("\n".join(blocks), end="")


if __name__ == "__main__":
    main()
