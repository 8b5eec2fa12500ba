"""Load a checkpoint of the transformer to the GPU, as the product does and with plain load_file."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _bench import interleaved, ratios, spread
from _checkpoints import checkpoint_of, drop_from_cache, write_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from _gpu.notes import Notes
from _gpu.setting import Setting
from _gpu.transformer import Place, join_alone, load_transformer
from opensora_launch.machine.host import host_facts
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import MmditConfig, ModelConfig

WHOLE_GB = 23.8  # Open-Sora 2.0's transformer in bf16
ROUNDS = 2


def load(setting: Setting, notes: Notes) -> None:
    """Write the checkpoint to a temporary folder, as large as disk and memory allow, and load it in turns."""
    notes.point("checkpoint", partial(_load, setting))


def _load(setting: Setting) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model = _checkpoint(setting, Path(folder))
        file = write_checkpoint(model)
        nbytes = file.stat().st_size
        ways: dict[str, Callable[[], Mapping[str, Tensor]]] = {
            "load_file": lambda: load_file(file, device=str(setting.device)),
            "product": partial(_place, setting, model),
        }
        first = {name: setting.measured(way) for name, way in ways.items()}
        equal = _same(first["load_file"][0], first["product"][0])
        peaks = {name: peak for name, (_, _, peak) in first.items()}
        del first
        runs = {}
        for name, way in ways.items():
            runs[f"{name}, cold"] = partial(_cold, setting, file, way)
            runs[f"{name}, warm"] = partial(setting.timed, way)
        seconds = interleaved(runs, ROUNDS)
    return {
        "file_bytes": nbytes,
        "folder": tempfile.gettempdir(),
        "equal": equal,
        **{name: {"s": spread(found), "gb_s": nbytes / spread(found).median / 1e9} for name, found in seconds.items()},
        "product_over_load_file_cold": ratios(seconds["product, cold"], seconds["load_file, cold"]),
        "product_over_load_file_warm": ratios(seconds["product, warm"], seconds["load_file, warm"]),
        "peaks": peaks,
    }


def _checkpoint(setting: Setting, folder: Path) -> ModelConfig:
    """Return Open-Sora's transformer; with fewer blocks if the disk or the memory has less than twice its size."""
    mmdit = setting.model.mmdit
    if setting.tiny:
        return checkpoint_of(mmdit, folder, 0.001)
    room = min(shutil.disk_usage(folder).free, host_facts([]).available_bytes or float("inf")) / 2e9
    if room >= WHOLE_GB:
        return checkpoint_of(mmdit, folder, WHOLE_GB)
    fewer: MmditConfig = replace(mmdit, depth=max(1, int(mmdit.depth * room / WHOLE_GB)))
    return checkpoint_of(fewer, folder, room)


def _place(setting: Setting, model: ModelConfig) -> Mapping[str, Tensor]:
    join_alone()
    transformer = load_transformer(setting, model, Placement(), Place.of(Layout()))
    return transformer.module.state_dict()


def _cold(setting: Setting, file: Path, way: Callable[[], object]) -> float:
    drop_from_cache(file)
    return setting.timed(way)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both ways gave the same numbers, in the product's type."""
    return one.keys() == other.keys() and all(torch.equal(one[k].to(other[k].dtype), other[k]) for k in one)
