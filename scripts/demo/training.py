"""Share the training loop of all stages: bf16 compute on fp32 weights, learning rate, log, checkpoints."""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class StageFailed(RuntimeError):
    """Report that a stage's gate was not passed."""


@dataclass(frozen=True)
class Schedule:
    """Set how long and how fast a stage learns: warm-up, then a cosine down to 5% of the peak."""

    steps: int
    batch: int
    peak_rate: float
    warmup: int = 50

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices [N, rows, columns], rows <= columns, with all singular values near 1.

    Five Newton-Schulz steps with the coefficients of Jordan et al., "Muon: an optimizer for hidden layers" (2024).
    """
    x: Tensor = matrices.bfloat16()
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.float()


def is_matrix(name: str, p: Tensor) -> bool:
    """Return whether Muon may update the parameter: one inside a transformer block, or a convolution in 3D."""
    if p.ndim == 5:
        return p.shape[1] > 1  # depthwise ones mix no channels
    return p.ndim == 2 and "_blocks." in name and "mod" not in name


class Learner:
    """Run AdamW on fp32 copies of bf16 weights, and keep their average (EMA). The networks always compute in bf16.

    With `matrix_rate`, Muon updates the matrices in transformer blocks, and those of convolutions in three dimensions,
    at matrix_rate times the schedule.
    """

    def __init__(self, networks: Iterable[nn.Module], decay: float = 0.0, matrix_rate: float = 0.0) -> None:
        named = [pair for network in networks for pair in network.named_parameters() if pair[1].requires_grad]
        self.working = [parameter for _, parameter in named]
        self.exact = [p.detach().float().clone() for p in self.working]
        self.matrix_rate = matrix_rate
        self.matrices = [n for n, (name, p) in enumerate(named) if matrix_rate and is_matrix(name, p)]
        self.momentum = [torch.zeros_like(self.exact[number]) for number in self.matrices]
        self.average = [p.clone() for p in self.exact]
        self.decay = decay
        self.adam = torch.optim.AdamW(self.exact, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.steps = 0

    @torch.no_grad()
    def step(self, rate: float, share: float = 1.0) -> float:
        """Apply and clear the gradients; return their norm. Skip a step whose gradients are not finite.

        rate is AdamW's; share is rate divided by the schedule's peak, and Muon's rate is multiplied by it.
        """
        grads = [
            torch.zeros_like(e) if p.grad is None else p.grad.float()
            for p, e in zip(self.working, self.exact, strict=True)
        ]
        norm = torch.nn.utils.get_total_norm(grads)
        for p in self.working:
            p.grad = None
        if not bool(torch.isfinite(norm)):
            return float(norm)
        scale = min(1.0, 1.0 / (float(norm) + 1e-6))
        for number, (exact, grad) in enumerate(zip(self.exact, grads, strict=True)):
            exact.grad = None if number in self.matrices else grad * scale
        self._step_matrices(grads, self.matrix_rate * share)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, self.exact, 1 - decay)
        self.put(self.exact)
        return float(norm)

    def _step_matrices(self, grads: list[Tensor], rate: float) -> None:
        """Apply Muon with Nesterov momentum 0.95, to the matrices of one shape at a time."""
        shapes: dict[tuple[int, ...], list[int]] = {}
        for place, number in enumerate(self.matrices):
            self.momentum[place].lerp_(grads[number], 0.05)
            shapes.setdefault((len(grads[number]), grads[number][0].numel()), []).append(place)
        for (rows, columns), places in shapes.items():
            ahead = torch.stack([grads[self.matrices[p]].lerp(self.momentum[p], 0.95).flatten(1) for p in places])
            moved = orthogonal(ahead.mT).mT if rows > columns else orthogonal(ahead)
            for place, update in zip(places, moved, strict=True):
                exact = self.exact[self.matrices[place]]
                exact.sub_(update.view_as(exact), alpha=rate * max(1.0, rows / columns) ** 0.5)

    @torch.no_grad()
    def put(self, values: list[Tensor]) -> None:
        """Write these values into the networks, rounded to their type."""
        for working, value in zip(self.working, values, strict=True):
            working.copy_(value)

    def state(self) -> dict[str, Any]:
        """Return everything that is needed to continue later."""
        lists = {"exact": self.exact, "average": self.average, "momentum": self.momentum}
        return {**lists, "adam": self.adam.state_dict(), "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        for name in ("exact", "average"):
            for mine, saved in zip(getattr(self, name), state[name], strict=True):
                mine.copy_(saved)
        if state.get("momentum"):
            self.momentum = state["momentum"]
        self.adam.load_state_dict(state["adam"])
        self.steps = state["steps"]
        self.put(self.exact)


class Log:
    """Write one JSONL file for all stages, and the same lines to stdout."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write(self, **record: Any) -> None:
        """Add a record, with the time and the CPU seconds that this process has used."""
        spent = {"process": os.getpid(), "cpu_s": round(time.process_time(), 1)}
        record = {"time": time.strftime("%H:%M:%S"), **spent, **record}
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def passed(self, stage: str) -> bool:
        """Return whether the stage's gate was passed after its last training step."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for record in map(json.loads, reversed(lines)):
            if record["stage"].startswith(stage) and ("gate" in record or "loss" in record):
                return bool(record.get("passed", False))
        return False


@dataclass(frozen=True)
class Stage:
    """Describe a named part of the training: its schedule and where its state is stored."""

    name: str
    folder: Path
    schedule: Schedule
    save_every: int = 50
    log_every: int = 25

    @property
    def path(self) -> Path:
        """Return the path of the stage's checkpoint."""
        return self.folder / f"{self.name}.pt"


def run_stage(
    stage: Stage, learner: Learner, loss_of: Callable[[torch.Generator], dict[str, Tensor]], log: Log
) -> None:
    """Train until the stage's last step, starting from its checkpoint if there is one.

    loss_of draws a batch with the given generator (seeded by stage and step, so a resumed run sees the same batches)
    and returns named scalars; "loss" is minimised.
    """
    first = 0
    if stage.path.exists():
        saved = torch.load(stage.path)
        learner.load(saved["learner"])
        first = saved["step"]
        log.write(stage=stage.name, event="resumed", step=first)
    sums: dict[str, float] = {}
    began = time.time()
    for step in range(first, stage.schedule.steps):
        generator = torch.Generator().manual_seed(1_000_003 * sum(stage.name.encode()) + step)
        parts = loss_of(generator)
        parts["loss"].backward()
        rate = stage.schedule.rate(step)
        norm = learner.step(rate, rate / stage.schedule.peak_rate)
        for name, value in {**parts, "norm": torch.tensor(norm)}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / stage.log_every
        if (step + 1) % stage.log_every == 0:
            pace = (time.time() - began) / (step + 1 - first)
            log.write(stage=stage.name, step=step + 1, s_per_step=pace, **sums)
            sums = {}
        if (step + 1) % stage.save_every == 0 or step + 1 == stage.schedule.steps:
            partial = stage.path.with_suffix(".part")
            torch.save({"learner": learner.state(), "step": step + 1}, partial)
            partial.rename(stage.path)


def gate(log: Log, stage: str, name: str, value: float, least: float) -> None:
    """Log a gate's number; raise StageFailed if it is below the minimum."""
    log.write(stage=stage, gate=name, value=value, least=least, passed=value >= least)
    if value < least:
        raise StageFailed(f"{stage}: {name} is {value:.4f}, but must be at least {least}")
