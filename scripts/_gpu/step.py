"""One step of the full-size transformer: by kernel kind, by number of rows, and without any work to speak of."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from _bench import ratios, spread
from torch.profiler import ProfilerActivity, profile, supported_activities

from _gpu.notes import Notes
from _gpu.setting import LARGE, Setting
from _gpu.transformer import ROWS, Inputs, Place, Stepper, finite, join_alone, load_transformer
from opensora_launch.plan.costs import elementwise_bytes, row_work, weight_bytes
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.memory import activation_bytes
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.times import StepLoad, rates_of, step_counts, step_time
from opensora_launch.schema.config import TopologyConfig
from opensora_launch.schema.model_constants import TOKENS_AT_ONCE

# Words in a kernel's name, or in an operator's where there are no kernels; the first match counts.
KINDS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "products": (
        "gemm",
        "gemv",
        "nvjet",
        "cutlass",
        "cublas",
        "xmma",
        "splitk",
        "wgmma",
        "addmm",
        "aten::mm",
        "bmm",
        "linear",
    ),
    "copies": ("memcpy", "memset", "copy", "catarray", "aten::cat", "aten::clone"),
}
OTHERS = "norms, rotation, modulation"
LISTED = 15  # kernels that take longest
FEW = 16  # video tokens of a step that does nothing but start kernels


def step(setting: Setting, notes: Notes) -> None:
    """Load the transformer, when a point needs it, and time its steps."""

    @cache
    def stepper() -> Stepper:
        join_alone()
        place = Place.of(Layout())
        made = load_transformer(setting, setting.model, Placement(), place)
        given = Inputs.of(setting, setting.model, setting.geometry(LARGE))
        found = Stepper.of(setting, setting.model, made, place, given)
        found()  # warm-up
        return found

    notes.point("launch", lambda: _launch(setting, stepper()))
    notes.point("kinds", lambda: _kinds(setting, stepper()))
    notes.point("rows", lambda: _rows(setting, stepper()))


def _launch(setting: Setting, large: Stepper) -> dict[str, Any]:
    """Time a step of so few tokens that the host's starting of kernels is all there is."""
    few = replace(large.inputs, latents=large.inputs.latents[:, :FEW], img_ids=large.inputs.img_ids[:, :FEW])
    rows = tuple(replace(row, cond=None if row.cond is None else row.cond[:FEW], txt=row.txt[:FEW]) for row in few.rows)
    run = Stepper(large.model, replace(few, rows=rows))
    run()
    seconds = [setting.timed(run) for _ in range(5)]
    blocks = setting.network(setting.model).blocks
    return {"tokens": 2 * FEW, "s": spread(seconds), "blocks": blocks, "per_block_s": spread(seconds).median / blocks}


def _rows(setting: Setting, run: Stepper) -> dict[str, Any]:
    """Time a step of three, two and one rows, and compare with the planner."""
    steps = {}
    for rows in sorted(ROWS, reverse=True):
        setting.free()
        steps[rows] = setting.measured(partial(run, rows))
    net, grid = setting.network(setting.model), setting.geometry(LARGE).grid
    flops = row_work(net, grid).flops
    found: dict[str, Any] = {"flops_per_row": flops, "tokens": grid.total_tokens}
    for rows in ROWS:
        _, seconds, peaks = steps[rows]
        planned = weight_bytes(net, setting.dtype.itemsize)
        planned += activation_bytes(net, grid, Layout(), rows, setting.dtype.itemsize)
        found[str(rows)] = {
            "s": spread([seconds]),
            "tflops": rows * flops / seconds / 1e12,
            "time_over_one_row": ratios([seconds], [steps[1][1]]),
            "predicted_s": predicted_step(setting, rows),
            **peaks,
            "predicted_bytes": planned,
        }
    found["finite"] = all(finite(result) for result, _, _ in steps.values())
    return found


def predicted_step(setting: Setting, rows: int) -> float | None:
    """Return the planner's seconds of a step on this card; None if the catalogue does not know it."""
    if not setting.known_card:
        return None
    counts = step_counts(step_load(setting, rows, setting.dtype.itemsize))
    return step_time(counts, rates_of(setting.card, TopologyConfig(gpus_per_node=1), setting.products)).total


def step_load(setting: Setting, rows: int, element_bytes: int) -> StepLoad:
    """Describe the large video's step on one GPU for the planner."""
    return StepLoad(
        setting.network(setting.model),
        setting.geometry(LARGE).grid,
        rows,
        Layout(),
        1,
        tokens_at_once=TOKENS_AT_ONCE,
        element_bytes=element_bytes,
    )


def _kinds(setting: Setting, run: Stepper) -> dict[str, Any]:
    """Profile one step of one row: device time by kernel kind, and the rate that each kind reaches."""
    activities = [a for a in (ProfilerActivity.CPU, ProfilerActivity.CUDA) if a in supported_activities()]
    if ProfilerActivity.CUDA not in activities and not setting.tiny:
        raise RuntimeError("this torch cannot see kernels: it was built without CUPTI")
    with profile(activities=activities) as found:
        wall_s = setting.timed(run)
    kernels = times_by_name(found.key_averages())
    by_kind = Counter[str]()
    for name, seconds in kernels.items():
        by_kind[kind_of(name)] += seconds
    total = sum(by_kind.values())
    net, grid = setting.network(setting.model), setting.geometry(LARGE).grid
    work, size = row_work(net, grid), setting.dtype.itemsize
    numbers = {"attention": work.attention_flops, "products": work.matmul_flops}
    return {
        "wall_s": wall_s,
        "kernels_s": total,
        "kinds": {
            kind: {
                "s": seconds,
                "share": seconds / total,
                "tflops": numbers[kind] / seconds / 1e12 if kind in numbers else None,
            }
            for kind, seconds in by_kind.most_common()
        },
        "elementwise_bytes": elementwise_bytes(net, grid.total_tokens, 1, size),
        "longest": dict(kernels.most_common(LISTED)),
    }


def times_by_name(events: Iterable[Any]) -> Counter[str]:
    """Return the seconds of each kernel; where nothing ran on a GPU, of each operator without those that it calls."""
    events = list(events)
    device = {e.key: e.self_device_time_total / 1e6 for e in events if e.device_type.name == "CUDA"}
    return Counter(device or {e.key: e.self_cpu_time_total / 1e6 for e in events if e.key.startswith("aten::")})


def kind_of(name: str) -> str:
    """Return the kind of a kernel, by its name."""
    low = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in low for word in words)), OTHERS)
