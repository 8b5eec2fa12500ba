"""What the card reaches at best: attention by kernel, matrix products, memory, copies between host and device."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from _bench import interleaved, ratios, spread
from torch import Tensor

from _gpu.notes import Notes, error_line
from _gpu.setting import LARGE, SMALL, Setting
from opensora_launch.errors import UserError
from opensora_launch.model.kernel_choice import FASTEST, LOADERS, Kernel, KernelTarget, fastest_kernel, load_kernel
from opensora_launch.model.kernels import reference
from opensora_launch.schema.model_constants import TOKENS_AT_ONCE

ROUNDS = 5
CHECKED = 64  # queries whose results are compared with the reference
GIB = 2**30


def attention(setting: Setting, notes: Notes) -> None:
    """Time every attention kernel that is installed, at the lengths of both videos, in turns."""
    for video in (LARGE, SMALL):
        notes.point(video, partial(_attention, setting, setting.geometry(video).grid.total_tokens))


def _attention(setting: Setting, tokens: int) -> dict[str, Any]:
    mmdit = setting.model.mmdit
    heads, dim = mmdit.num_heads, mmdit.hidden_size // mmdit.num_heads
    capability = torch.cuda.get_device_capability(setting.device) if setting.on_gpu else None
    target = KernelTarget(capability, setting.dtype, dim)
    q, k, v = (setting.random(1, tokens, heads, dim) for _ in range(3))
    expected = reference(q[:, :CHECKED], k, v)
    calls, left_out, errors = dict[str, Kernel](), dict[str, str](), dict[str, float]()
    for name in sorted({*FASTEST, *LOADERS} - {"reference"}):
        try:
            kernel = load_kernel(name, target)
            found = kernel.call(q, k, v)
            parts = ((found[0][:, :CHECKED], expected[0]), (found[1][..., :CHECKED], expected[1]))
            errors[name] = max(float((a.float() - b.float()).abs().max()) for a, b in parts)
        except UserError as error:
            left_out[name] = str(error)
        except Exception as error:  # noqa: BLE001 a kernel may fail only when it runs
            left_out[name] = error_line(error)
        else:
            calls[name] = kernel
    if not calls:
        return {"error": "no kernel ran", "left_out": left_out}
    flops = 4.0 * tokens**2 * heads * dim
    turns = {name: partial(setting.timed, partial(kernel.call, q, k, v)) for name, kernel in calls.items()}
    seconds = interleaved(turns, ROUNDS)
    best = min(seconds, key=lambda name: spread(seconds[name]).median)
    kernels = {
        name: {
            "version": calls[name].version,
            "s": spread(seconds[name]),
            "tflops": flops / spread(seconds[name]).median / 1e12,
            "time_over_fastest": ratios(seconds[name], seconds[best]),
            "max_abs_error": errors[name],
        }
        for name in calls
    }
    shape = {"rows": 1, "tokens": tokens, "heads": heads, "head_dim": dim, "flops": flops}
    return {
        **shape,
        "kernels": kernels,
        "fastest": best,
        "auto": fastest_kernel(FASTEST, target, setting.device).name,
        "left_out": left_out,
    }


def ceilings(setting: Setting, notes: Notes) -> None:
    """Time products in the model's shapes, memory, and copies."""
    notes.point("products", partial(_products, setting))
    notes.point("memory", partial(_memory, setting))
    notes.point("copies", partial(_copies, setting))


def _products(setting: Setting) -> dict[str, Any]:
    width, wide = setting.model.mmdit.hidden_size, int(setting.model.mmdit.hidden_size * setting.model.mmdit.mlp_ratio)
    tokens, calls = (64, 1) if setting.tiny else (TOKENS_AT_ONCE, 20)
    shapes = {
        "projection": (tokens, width, width),
        "feed-forward in": (tokens, width, wide),
        "feed-forward out": (tokens, wide, width),
        "single block in": (tokens, width, width + wide),
        "single block out": (tokens, width + wide, width),
        "square": (tokens, tokens, tokens),
    }
    runs = {name: partial(setting.per_call, _product(setting, *shape), calls) for name, shape in shapes.items()}
    for run in runs.values():
        run()  # warm-up
    seconds = interleaved(runs, ROUNDS)
    return {
        "shapes": {
            name: {
                "rows_inputs_outputs": shapes[name],
                "s": spread(found),
                "tflops": 2.0 * shapes[name][0] * shapes[name][1] * shapes[name][2] / spread(found).median / 1e12,
            }
            for name, found in seconds.items()
        }
    }


def _product(setting: Setting, rows: int, inputs: int, outputs: int) -> Callable[[], Tensor]:
    """Return a product with new inputs at each call, since the same ones may stay in the cache."""
    weight, bias = setting.random(outputs, inputs), setting.random(outputs)
    several = [setting.random(rows, inputs) for _ in range(4)]
    turn = _endless(several)
    return lambda: F.linear(next(turn), weight, bias)


def _endless(tensors: list[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from tensors


def _memory(setting: Setting) -> dict[str, Any]:
    count = (2**14 if setting.tiny else 2 * GIB) // setting.dtype.itemsize
    source, target = setting.random(count), setting.random(count)
    nbytes = count * setting.dtype.itemsize
    runs = {
        "copy": (2, partial(setting.per_call, lambda: target.copy_(source), 4)),
        "add": (3, partial(setting.per_call, lambda: target.add_(source), 4)),
    }
    for _, run in runs.values():
        run()
    seconds = interleaved({name: run for name, (_, run) in runs.items()}, ROUNDS)
    return {
        name: {"s": spread(found), "gb_s": runs[name][0] * nbytes / spread(found).median / 1e9}
        for name, found in seconds.items()
    }


def _copies(setting: Setting) -> dict[str, Any]:
    """Copy both ways, from and to pinned memory and other memory."""
    count = (2**14 if setting.tiny else GIB) // 4
    there = setting.random(count, dtype=torch.float32)
    runs = {}
    for name in ("pinned", "not pinned") if setting.on_gpu else ("not pinned",):
        memory, back = (torch.empty(count, dtype=torch.float32, pin_memory=name == "pinned") for _ in range(2))
        memory.copy_(there)
        runs[f"to the device, {name}"] = partial(setting.timed, partial(there.copy_, memory, non_blocking=True))
        runs[f"to the host, {name}"] = partial(setting.timed, partial(back.copy_, there, non_blocking=True))
    for run in runs.values():
        run()
    seconds = interleaved(runs, ROUNDS)
    return {
        name: {"s": spread(found), "gb_s": 4 * count / spread(found).median / 1e9} for name, found in seconds.items()
    }
