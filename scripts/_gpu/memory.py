"""The memory that is not for tensors: what the plan sets aside, and what context and libraries take."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from _gpu.notes import Notes
from _gpu.nvml_facts import total_bytes, used_bytes
from _gpu.setting import SMALL, Setting
from _gpu.transformer import Place, join_alone, kernel_of
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.memory import FRAGMENTS, USABLE
from opensora_launch.plan.set_aside import RESERVED_BYTES


def memory(setting: Setting, notes: Notes) -> None:
    """Take the libraries into use one after another, and read after each what is gone from the GPU."""
    notes.point("set aside", partial(_set_aside, setting))


def _set_aside(setting: Setting) -> dict[str, Any]:
    stages = dict[str, int | None]()
    for name, use in _uses(setting):
        use()
        setting.free()
        stages[name] = _outside(setting)
    total = torch.cuda.mem_get_info(setting.device)[1] if setting.on_gpu else None
    listed = total_bytes()
    return {
        "used_before_bytes": setting.used_before,
        "outside_bytes": stages,
        "planned_bytes": RESERVED_BYTES,
        "usable_share": total / listed if total and listed else None,
        "planned_usable_share": USABLE,
        "planned_fragments": FRAGMENTS,
    }


def _uses(setting: Setting) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what makes the driver and each library take memory, in the order of a run."""
    model, heads = setting.model, setting.model.mmdit.num_heads
    dim = model.mmdit.hidden_size // heads
    yield "context", lambda: setting.random(1)
    yield "communicators", partial(_communicate, setting)
    yield "products", lambda: setting.random(64, 64) @ setting.random(64, 64)
    tokens = setting.geometry(SMALL).grid.total_tokens
    yield "attention", lambda: kernel_of(setting, model).call(*(setting.random(1, tokens, heads, dim) for _ in "qkv"))
    yield "convolutions", lambda: _convolution(setting)(setting.random(1, 16, 5, 64, 64))


def _convolution(setting: Setting) -> nn.Module:
    return nn.Conv3d(16, 16, 3).to(setting.device, setting.dtype).requires_grad_(False)


def _communicate(setting: Setting) -> None:
    join_alone()
    dist.all_reduce(setting.random(8, dtype=torch.float32), group=Place.of(Layout()).mesh.video.group)


def _outside(setting: Setting) -> int | None:
    """Return the bytes of the GPU that this process took beyond torch's tensors and cache.

    NVML tells what was used before this process had a context. Without NVML, everything in use counts.
    """
    if not setting.on_gpu:
        return None
    held = int(torch.cuda.memory_reserved(setting.device))
    if setting.used_before is not None and (now := used_bytes()) is not None:
        return now - setting.used_before - held
    free, total = torch.cuda.mem_get_info(setting.device)
    return int(total - free) - held
