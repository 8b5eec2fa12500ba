"""Do the work of the ranks of `scripts/bench_engines`: race both engines, start one, or write a checkpoint.

torchrun ... scripts/_engines.py WORK OUT ROUNDS FOLDER      WORK: race, store, native, colossalai
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _bench import ROOT, write_text
from torch import Tensor

sys.path.insert(0, str(ROOT))

from opensora_launch.engines.choice import choose_engine
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.parallel.mesh import Groups, Mesh, build_meshes
from opensora_launch.parallel.sharded_model import RowInputs, ShardedModel
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.sampling.latents import position_ids
from opensora_launch.schema.config import Engine, Init, MmditConfig, ModelConfig

RACED = MmditConfig(
    in_channels=16, vec_in_dim=64, context_in_dim=128, hidden_size=256, num_heads=4, depth=2, depth_single_blocks=4,
    axes_dim=[16, 24, 24],
)  # fmt: skip
STARTED = MmditConfig(
    in_channels=16, vec_in_dim=64, context_in_dim=128, hidden_size=768, num_heads=12, depth=2, depth_single_blocks=4,
    axes_dim=[16, 24, 24],
)  # fmt: skip
TEXT, FRAMES, HEIGHT, WIDTH = 128, 5, 10, 16
TOKENS = TEXT + FRAMES * HEIGHT * WIDTH
INDEX = "model.safetensors"  # plus .index.json: ColossalAI's name for it


@dataclass(frozen=True)
class Place:
    """Hold the device and dtype of this rank."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of_rank(cls) -> "Place":
        if torch.cuda.device_count() >= dist.get_world_size():
            torch.cuda.set_device(dist.get_rank())
            return cls(torch.device("cuda", dist.get_rank()), torch.bfloat16)
        torch.set_num_threads(1)
        return cls(torch.device("cpu"), torch.float32)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def layouts_of(world: int) -> dict[str, Layout]:
    """Return layouts by their names in the tables. ColossalAI's all_to_all and ring_attn are our Ulysses and ring."""
    plain = {"tp": Layout(tp=world), "all_to_all": Layout(ulysses=world), "ring_attn": Layout(ring=world)}
    return plain | {"tp 2 x all_to_all 2": Layout(ulysses=2, tp=2)} if world == 4 else plain


def source_of(mmdit: MmditConfig, place: Place, folder: str | None = None) -> WeightSource:
    if folder is None:
        return WeightSource(ModelConfig(init=Init.random, mmdit=mmdit), place.device, place.dtype)
    return WeightSource(ModelConfig(folder=folder, mmdit_file=INDEX, mmdit=mmdit), place.device, place.dtype)


def built(source: WeightSource, engine: Engine, mesh: Mesh) -> ShardedModel:
    cfg = source.model.mmdit
    chosen = choose_engine(engine)
    loaded = chosen.load_transformer(source, Placement(), mesh.video, mesh, lambda nbytes: None)
    head_dim = cfg.hidden_size // cfg.num_heads
    kernel = choose_kernel("auto", device=source.device, dtype=source.dtype, head_dim=head_dim).call
    return ShardedModel(loaded.module.forward, kernel, {1: mesh}, attention=chosen.attention)


def inputs(cfg: MmditConfig, place: Place) -> tuple[Tensor, Tensor, list[RowInputs]]:
    rng = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng).to(place.device)

    ids = position_ids(FRAMES, HEIGHT, WIDTH, place.device)
    latents, text = draw(1, ids.shape[1], cfg.in_channels), draw(TEXT, cfg.context_in_dim).to(place.dtype)
    cond = draw(ids.shape[1], cfg.in_channels + 4).to(place.dtype)
    return latents, ids, [RowInputs(0, 0.5, text, draw(cfg.vec_in_dim).to(place.dtype), cond, 0.0)]


@dataclass
class Sent:
    """Count the bytes that this rank sends, as every exchange records them."""

    nbytes: int = 0

    @contextmanager
    def record(self, axis: str, ranks: tuple[int, ...], nbytes: int) -> Iterator[None]:
        self.nbytes += nbytes
        yield


@dataclass(frozen=True)
class Way:
    name: str
    engine: Engine
    run: Callable[[], Tensor]
    weights: int  # bytes on this rank


def race(place: Place, rounds: int) -> list[dict[str, Any]]:
    """Run forwards of each layout with both engines in turns; return wall and CPU time, and bytes of all ranks."""
    world, sent = dist.get_world_size(), Sent()
    layouts, given = layouts_of(world), inputs(RACED, place)
    alone = Layout(dp=world)
    meshes = build_meshes([*layouts.values(), alone], dist.get_rank(), Groups(timedelta(minutes=5)), sent.record)
    source = source_of(RACED, place)
    want = built(source, Engine.native, meshes[alone]).predict(*given)
    ways = [
        Way(name, engine, partial(model.predict, *given), weights_of(model))
        for name, layout in layouts.items()
        for engine in Engine
        for model in [built(source, engine, meshes[layout])]
    ]
    found = []
    for way in ways:
        way.run()
        sent.nbytes = 0
        away = float((way.run() - want).abs().max())
        numbers = torch.tensor([away, float(sent.nbytes), float(way.weights)], dtype=torch.float64)
        found.append(torch.stack(gathered(numbers)))
    samples = torch.zeros(rounds, len(ways), 3, dtype=torch.float64)  # start, stop, CPU seconds
    for number in range(rounds):
        for i in range(len(ways))[:: 1 if number % 2 == 0 else -1]:
            samples[number, i] = timed(ways[i].run, place)
    everyone = torch.stack(gathered(samples))
    wall, cpu = everyone[..., 1].amax(0) - everyone[..., 0].amin(0), everyone[..., 2].sum(0)
    return [
        {
            "way": way.name, "engine": way.engine.value, "wall_s": wall[:, i].tolist(), "cpu_s": cpu[:, i].tolist(),
            "max_abs_difference": float(found[i][:, 0].max()), "sent_bytes": int(found[i][:, 1].sum()),
            "weights_bytes": int(found[i][:, 2].max()),
        }
        for i, way in enumerate(ways)
    ]  # fmt: skip


def weights_of(model: ShardedModel) -> int:
    module = model.forward.__self__  # type: ignore[attr-defined] # the method's transformer
    return sum(p.nbytes for p in module.parameters())


def timed(run: Callable[[], Tensor], place: Place) -> Tensor:
    dist.barrier()
    place.wait()
    start, start_cpu = time.monotonic(), time.process_time()
    run()
    place.wait()
    return torch.tensor([start, time.monotonic(), time.process_time() - start_cpu], dtype=torch.float64)


def gathered(x: Tensor) -> list[Tensor]:
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, x)
    return parts


def start(engine: Engine, place: Place, folder: str) -> dict[str, float]:
    """Go from files to the first forward on a tp axis of all ranks; seconds are the slowest rank's, bytes of all."""
    before, began, cpu = pss(), time.monotonic(), time.process_time()
    layout = Layout(tp=dist.get_world_size())
    mesh = build_meshes([layout], dist.get_rank(), Groups(timedelta(minutes=5)), Sent().record)[layout]
    if engine is Engine.colossalai:
        import opensora_launch.engines.colossal.engine  # noqa: F401
    imported = time.monotonic()
    model = built(source_of(STARTED, place, folder), engine, mesh)
    place.wait()
    loaded, held = time.monotonic(), pss() - before
    model.predict(*inputs(STARTED, place))
    place.wait()
    done = time.monotonic()
    seconds = [imported - began, loaded - imported, done - loaded]
    table = torch.stack(gathered(torch.tensor([*seconds, time.process_time() - cpu, float(held)], dtype=torch.float64)))
    slowest = table[:, :3].amax(0)
    names = ("import_s", "load_s", "first_forward_s")
    found = {name: float(value) for name, value in zip(names, slowest, strict=True)}
    return found | {"cpu_s": float(table[:, 3].sum()), "memory_bytes": float(table[:, 4].sum())}


def pss() -> int:
    """Return this process's proportional set size in bytes, which includes its part of shared memory."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def store(place: Place, folder: str) -> None:
    """Write the checkpoint for the starts with ColossalAI's own writer."""
    from opensora_launch.engines.colossal.engine import cut_by_policy, load_by_layer, save_checkpoint

    layout = Layout(tp=dist.get_world_size())
    mesh = build_meshes([layout], dist.get_rank(), Groups(timedelta(minutes=5)), Sent().record)[layout]
    wrapped = cut_by_policy(STARTED, mesh, place.device, place.dtype)
    load_by_layer(wrapped.unwrap(), source_of(STARTED, place).reader(), lambda nbytes: None)
    save_checkpoint(wrapped, Path(folder), mesh, megabytes=64)
    dist.barrier()


def main(work: str, out: str, rounds: str, folder: str) -> None:
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    place = Place.of_rank()
    found: Any = None
    with torch.no_grad():
        if work == "race":
            found = race(place, int(rounds))
        elif work == "store":
            store(place, folder)
        else:
            found = start(Engine(work), place, folder)
    if dist.get_rank() == 0:
        write_text(Path(out), json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
