"""The items of the campaign, in the order in which they run: what each measures, and the function that does it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from _gpu.notes import Notes
from _gpu.setting import Setting

Measure = Callable[[Setting, Notes], None]


@dataclass(frozen=True)
class Item:
    """`measure` is MODULE.FUNCTION: a package that one item needs and that is not there must not stop the others."""

    about: str
    measure: str

    def __call__(self, setting: Setting, notes: Notes) -> None:
        module, _, function = self.measure.partition(".")
        getattr(import_module(f"_gpu.{module}"), function)(setting, notes)


ITEMS = {
    "run": Item("does it run: generate, full size, random weights, few steps", "running.run"),
    "memory": Item("memory that context and libraries take, beside what is set aside", "memory.memory"),
    "attention": Item("attention kernels at the lengths of both videos", "ceilings.attention"),
    "ceilings": Item("matrix products, memory, and copies between host and device", "ceilings.ceilings"),
    "step": Item("a step by kernel kind, with 1, 2 and 3 rows, and with hardly any tokens", "step.step"),
    "vae": Item("decoding tile by tile, encoding, both layouts of memory", "vae.vae"),
    "offload": Item("weights in host memory under caps of 24 and 16 GB", "offload.offload"),
    "share": Item("one rank's share of 2, 4 and 8 GPUs (simulated)", "share.share"),
    "load": Item("a checkpoint to the GPU, and load_file", "load.load"),
    "nvml": Item("the sampler beside nvidia-smi", "watching.nvml"),
    "telemetry": Item("what recording costs a step", "watching.telemetry"),
}
