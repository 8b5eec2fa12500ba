"""What every item works with: the device, the sizes, and how time and memory are read."""

import hashlib
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from _bench import ROOT, environment
from torch import Tensor

from _gpu.nvml_facts import driver, used_bytes
from opensora_launch.machine.host import count_cpus
from opensora_launch.plan.geometry import Geometry, geometry_of
from opensora_launch.plan.networks import Network, network_of
from opensora_launch.request.catalogue import match, read_cards
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import Init, MmditConfig, ModelConfig, NumericsConfig, TextConfig, VideoConfig
from opensora_launch.worker.numerics import set_numerics
from opensora_launch.worker.rank import Rank, pick_device

T = TypeVar("T")

SIZES = ("full", "tiny")
LARGE, SMALL = "768px", "256px"
TINY_CARD = Card(name="cpu", memory_gib=64, bandwidth_gb_s=50, bf16_tflops=0.1, fp32_tflops=0.1)


@dataclass(frozen=True)
class Setting:
    """`size` tiny is for rehearsals: every item runs in seconds, and its numbers say nothing about a GPU.

    `through`: words between python and a program that an item starts; a rehearsal's double of CUDA stands there.
    """

    device: torch.device
    size: str
    through: tuple[str, ...] = ()
    used_before: int | None = None  # bytes of the GPU that were in use before this process had a context

    @classmethod
    def of(cls, kind: str, size: str, through: tuple[str, ...] = ()) -> "Setting":
        """Compute as a rank does on its device, "cuda" or "cpu". Raises UserError if there is no GPU."""
        used = used_bytes() if kind == "cuda" else None
        set_numerics(1 if size == "tiny" else count_cpus(), NumericsConfig())
        return cls(pick_device(kind, Rank(0, 0, 1, 1)), size, through, used)

    @property
    def tiny(self) -> bool:
        return self.size == "tiny"

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """What the product computes in on this device."""
        return torch.bfloat16 if self.on_gpu and self.card.has_bf16 else torch.float16 if self.on_gpu else torch.float32

    @property
    def products(self) -> str:
        """The type of matrix products, as in `Card.tflops`."""
        return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[self.dtype]

    @property
    def model(self) -> ModelConfig:
        """Open-Sora 2.0's sizes, or those of model=tiny; random weights."""
        if not self.tiny:
            return ModelConfig(init=Init.random)
        found = yaml.safe_load((ROOT / "configs" / "model" / "tiny.yaml").read_text(encoding="utf-8"))
        return ModelConfig(
            name="tiny",
            init=Init.random,
            mmdit=MmditConfig(**found["mmdit"]),
            vae=VaeConfig(**found["vae"], tile_px=32),
            text=TextConfig(**found["text"]),
        )

    def geometry(self, video: str) -> Geometry:
        """The size of a video of 129 frames: LARGE or SMALL; tiny ones instead for a rehearsal."""
        model = self.model
        config = VideoConfig(resolution=video)
        if self.tiny:
            config = VideoConfig(resolution=None, height_px=48 if video == LARGE else 32, width_px=64, num_frames=5)
        return geometry_of(config, model)

    def network(self, model: ModelConfig) -> Network:
        return network_of(model)

    @cached_property
    def card(self) -> Card:
        """The card of the catalogue that this GPU is; one without facts but a name if it has none."""
        if not self.on_gpu:
            return TINY_CARD
        name = torch.cuda.get_device_name(self.device)
        return match(name, read_cards()) or replace(TINY_CARD, name=_slug(name))

    @property
    def known_card(self) -> bool:
        """Whether the catalogue knows this GPU, so that there are predictions."""
        return self.on_gpu and self.card.tdp_w > 0

    def random(self, *shape: int, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        """Draw normal numbers: a GPU multiplies zeros faster than anything else."""
        return torch.randn(shape, dtype=torch.float32, device=device or self.device).to(dtype or self.dtype)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def timed(self, work: Callable[[], object]) -> float:
        """Return the seconds of `work` on the device, by the host's clock."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def per_call(self, work: Callable[[], object], calls: int) -> float:
        """Return the seconds of one call, of several that wait for nothing between them."""
        return self.timed(lambda: [work() for _ in range(calls)]) / calls

    def measured(self, work: Callable[[], T]) -> tuple[T, float, dict[str, int | None]]:
        """Return what the work returns, its seconds, and the most bytes that tensors took and that the allocator held.

        The bytes are None on a CPU. What the allocator held before counts, unless it was freed.
        """
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        self.wait()
        start = time.perf_counter()
        made = work()
        self.wait()
        seconds = time.perf_counter() - start
        allocated = int(torch.cuda.max_memory_allocated(self.device)) if self.on_gpu else None
        reserved = int(torch.cuda.max_memory_reserved(self.device)) if self.on_gpu else None
        return made, seconds, {"allocated_bytes": allocated, "reserved_bytes": reserved}

    def free(self) -> None:
        """Give memory that no tensor uses back to the device."""
        if self.on_gpu:
            self.wait()
            torch.cuda.empty_cache()

    def cap(self, total_bytes: float | None) -> None:
        """Let this process allocate so many bytes of the GPU at most; None: all of it."""
        if self.on_gpu:
            _, there = torch.cuda.mem_get_info(self.device)
            torch.cuda.set_per_process_memory_fraction(1.0 if total_bytes is None else min(1.0, total_bytes / there))

    def facts(self) -> dict[str, Any]:
        """Return what every result file names: GPU, driver, libraries, commit and date."""
        return {"size": self.size, "machine": environment("torch", "safetensors") | self._gpu_facts()}

    def _gpu_facts(self) -> dict[str, Any]:
        version, why_not = driver()
        return {
            "gpu": torch.cuda.get_device_name(self.device) if self.on_gpu else None,
            "card": self.card.name,
            "memory_bytes": torch.cuda.mem_get_info(self.device)[1] if self.on_gpu else None,
            "driver": version,
            "no_nvml": why_not,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "source": source_digest(),
        }


def source_digest() -> str:
    """Return what tells this version of the package from others: a machine may have a copy without git."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "opensora_launch").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def default_out(card: str, size: str) -> Path:
    return ROOT / "docs" / "benchmarks" / "gpu" / (card if size == "full" else f"{card}-{size}")


def place_of(machine: Mapping[str, Any]) -> str:
    """Return the line that goes under every table."""
    gpu = machine["gpu"] or f"no GPU ({machine['cpu']})"
    commit = machine["commit"][:12] if machine["commit"] else f"source {machine['source']}"
    libraries = f"torch {machine['torch']}, CUDA {machine['cuda']}, cuDNN {machine['cudnn']}"
    return f"{gpu}, driver {machine['driver']}, {libraries}, Python {machine['python']}; {commit}; {machine['made']}"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.removeprefix("NVIDIA ").lower())
