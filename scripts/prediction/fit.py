"""Fit the constants of the time model to measurements: what cards reach of their data sheets, and what programs add.

Everything is fitted as a logarithm with a normal prior (mean and width in `priors`), with Gauss-Newton steps on
log(predicted / published) and Huber's weights, so that a few odd measurements do not decide. A measurement's time is

    steps * step_time(counts, rates) + VAE FLOPs / VAE rate + host

Each rate is a data-sheet number times the constants that `links_of` names for the measurement.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opensora_launch.plan.times import Rates, step_time
from opensora_launch.schema.cards import PCIE_GB_S, default_efficiency
from prediction.published import Measurement

SPREAD = 0.04  # relative spread of one measurement: two runs of one program differ by this much
HUBER = 2.0  # number of spreads from which a residual counts linearly
STEPS, DONE = 60, 1e-4
NODE_LINK_BYTES = 12.5e9  # 100 Gbit/s, for the only two tables with two nodes
RATES = (
    "matmul_flops", "attention_flops", "memory_bytes", "link_bytes", "crowd", "call_s", "ring_hidden", "gather_hidden",
    "block_launch_s", "hop_launch_s", "vae_flops", "host_s",
)  # fmt: skip
INDEX = {name: i for i, name in enumerate(RATES)}
WORK = ("matmul_flops", "attention_flops", "memory_bytes")

# Constants of all measurements: mean and width (of the logarithm). Means are round numbers from before any fit.
SHARED = {
    "link:nvlink": (0.6, 0.3), "link:pcie": (0.6, 0.3), "crowd": (0.8, 0.3), "call": (2e-5, 0.7),
    "ring_hidden": (0.5, 0.7), "gather_hidden": (0.5, 0.5), "launch": (2e-3, 0.5), "hop": (3e-4, 0.7),
    "memory": (0.7, 0.3), "compiled_memory": (3.0, 0.5), "compiled_launch": (0.15, 0.5), "vae": (0.1, 0.5),
    "host": (0.3, 0.5),
}  # fmt: skip
# Constants per card, per program on a card, per program, per table: their logarithms are near 0.
WIDTHS = {
    "matmul": 0.25, "attention": 0.25, "link": 0.3, "program_matmul": 0.15, "program_attention": 0.4, "program": 0.1,
    "program_vae": 0.7, "program_launch": 0.3, "table": 0.03, "table_vae": 0.5,
}  # fmt: skip
# Cards with the same chip share their measurements of compute, and of the link if that is the same too.
SAME_CHIP = {"h200": "h100_sxm", "h800": "h100_sxm", "a100_40gb_sxm": "a100_80gb_sxm"}
OWN_LINK = {"h800"}


@dataclass(frozen=True)
class Fitted:
    """Hold logarithms of constants by name; a name without measurements has its prior's mean."""

    logs: Mapping[str, float]

    def value(self, name: str) -> float:
        return math.exp(self.logs.get(name, prior(name)[0]))


def prior(name: str) -> tuple[float, float]:
    """Return mean and width of a constant's logarithm."""
    if name in SHARED:
        mean, width = SHARED[name]
        return math.log(mean), width
    return 0.0, WIDTHS[name.partition("@")[0]]


def chip_of(card: str) -> str:
    """Return the card whose constants of compute are used for this one."""
    return SAME_CHIP.get(card, card)


def link_card(card: str) -> str:
    """Return the card whose constant of the link is used for this one."""
    return card if card in OWN_LINK else chip_of(card)


def links_of(row: Measurement) -> list[tuple[str, str, float]]:
    """Return (constant, rate, sign): which constants multiply or divide which rates of a measurement."""
    card, here = chip_of(str(row.card.name)), f"{row.program}/{row.card.name}"
    found = [(f"program@{row.program}", rate, 1.0) for rate in WORK] + [
        (f"table@{row.table}", rate, 1.0) for rate in WORK
    ]
    found += [
        (f"matmul@{card}", "matmul_flops", 1.0),
        (f"program_matmul@{here}", "matmul_flops", 1.0),
        (f"attention@{card}", "attention_flops", 1.0),
        (f"program_attention@{here}", "attention_flops", 1.0),
        ("memory", "memory_bytes", 1.0),
        (f"link:{row.link}", "link_bytes", 1.0),
        (f"link@{link_card(str(row.card.name))}", "link_bytes", 1.0),
        ("call", "call_s", 1.0),
        ("ring_hidden", "ring_hidden", 1.0),
        ("gather_hidden", "gather_hidden", 1.0),
        ("vae", "vae_flops", 1.0),
        (f"program_vae@{row.program}", "vae_flops", -1.0),
        (f"table_vae@{row.table}", "vae_flops", -1.0),
        ("host", "host_s", 1.0),
        ("hop", "hop_launch_s", 1.0),
    ]
    for rate in ("block_launch_s", "hop_launch_s"):
        found.append((f"program_launch@{row.program}", rate, 1.0))
        found += [("compiled_launch", rate, 1.0)] if row.compiled else []
    found.append(("launch", "block_launch_s", 1.0))
    found += [("compiled_memory", "memory_bytes", 1.0)] if row.compiled else []
    found += [("crowd", "crowd", 1.0)] if row.link == "pcie" else []
    return found


def base_rates(row: Measurement) -> list[float]:
    """Return the logarithms of the data sheet's numbers, in the order of RATES."""
    card = row.card
    peak = card.half_tflops * 1e12
    reach = default_efficiency(card.half_tflops)
    nvlink = row.link == "nvlink" and card.nvlink_gb_s is not None
    link = (card.nvlink_gb_s or 0.0) if nvlink else PCIE_GB_S[card.pcie_generation]
    values = dict.fromkeys(RATES, 1.0) | {
        "matmul_flops": peak * reach,
        "attention_flops": peak * reach,
        "memory_bytes": card.bandwidth_gb_s * 1e9,
        "link_bytes": link * 1e9,
        "vae_flops": peak,
    }
    return [math.log(values[name]) for name in RATES]


@dataclass(frozen=True)
class Case:
    """Hold a measurement, ready to be predicted many times."""

    row: Measurement
    base: tuple[float, ...]
    links: tuple[tuple[str, int, float], ...]

    @classmethod
    def of(cls, row: Measurement) -> "Case":
        links = tuple((name, INDEX[rate], sign) for name, rate, sign in links_of(row))
        return cls(row, tuple(base_rates(row)), links)

    def logs(self, fitted: Fitted) -> list[float]:
        values = list(self.base)
        for name, index, sign in self.links:
            known = fitted.logs.get(name)
            values[index] += sign * (prior(name)[0] if known is None else known)
        return values


def seconds_at(row: Measurement, logs: Sequence[float]) -> float:
    """Return the predicted seconds of a measurement, given the logarithms of RATES."""
    value = dict(zip(RATES, map(math.exp, logs), strict=True))
    host = value.pop("host_s")
    rates = Rates(**value, node_link_bytes=NODE_LINK_BYTES)
    decode = row.vae_flops / rates.vae_flops
    if row.counts is None:
        return decode / row.gpus
    return row.steps * step_time(row.counts, rates).total + (decode + host if row.end_to_end else 0.0)


def predict(row: Measurement, fitted: Fitted) -> float:
    return seconds_at(row, Case.of(row).logs(fitted))


def fit(rows: Sequence[Measurement], start: Fitted | None = None) -> Fitted:
    """Return the most likely constants, given the measurements and the priors. `start` only saves time."""
    problem = _Problem.of(rows)
    at = problem.mean.copy()
    if start:
        at = np.array([start.logs.get(name, mean) for name, mean in zip(problem.names, at, strict=True)])
    damping, left = 1e-3, problem.left(at)
    cost = problem.cost(left, at)
    for _ in range(STEPS):
        slopes = problem.slopes(at)
        weights = np.minimum(1.0, HUBER / np.maximum(np.abs(left), 1e-12))
        matrix = slopes.T @ (weights[:, None] * slopes) + np.diag(problem.width**-2.0)
        towards = slopes.T @ (weights * left) - (at - problem.mean) / problem.width**2
        while damping < 1e8:
            step = np.linalg.solve(matrix + damping * np.diag(np.diag(matrix)), towards)
            tried = at + np.clip(step, -1.0, 1.0)
            new_left = problem.left(tried)
            if (new_cost := problem.cost(new_left, tried)) < cost:
                break
            damping *= 5
        else:
            break
        gained, damping = (cost - new_cost) / cost, damping / 5
        at, left, cost = tried, new_left, new_cost
        if gained < DONE:
            break
    return Fitted(dict(zip(problem.names, at.tolist(), strict=True)))


Vector = NDArray[np.float64]


@dataclass(frozen=True)
class _Problem:
    cases: tuple[Case, ...]
    names: tuple[str, ...]
    mean: Vector
    width: Vector

    @classmethod
    def of(cls, rows: Sequence[Measurement]) -> "_Problem":
        cases = tuple(Case.of(row) for row in rows)
        names = tuple(sorted({name for case in cases for name, _, _ in case.links}))
        mean, width = (np.array(values) for values in zip(*(prior(name) for name in names), strict=True))
        return cls(cases, names, mean, width)

    def fitted(self, at: Vector) -> Fitted:
        return Fitted(dict(zip(self.names, at.tolist(), strict=True)))

    def left(self, at: Vector) -> Vector:
        """Return log(published / predicted), in spreads."""
        fitted = self.fitted(at)
        return np.array([math.log(c.row.seconds / seconds_at(c.row, c.logs(fitted))) / SPREAD for c in self.cases])

    def slopes(self, at: Vector) -> Vector:
        """Return the derivative of each prediction by each constant, in spreads."""
        fitted, place = self.fitted(at), {name: i for i, name in enumerate(self.names)}
        slopes = np.zeros((len(self.cases), len(self.names)))
        for i, case in enumerate(self.cases):
            logs = case.logs(fitted)
            here = math.log(seconds_at(case.row, logs))
            by_rate: dict[int, float] = {}
            for name, index, sign in case.links:
                if index not in by_rate:
                    moved = [*logs[:index], logs[index] + 1e-4, *logs[index + 1 :]]
                    by_rate[index] = (math.log(seconds_at(case.row, moved)) - here) / 1e-4 / SPREAD
                slopes[i, place[name]] += sign * by_rate[index]
        return slopes

    def cost(self, left: Vector, at: Vector) -> float:
        size = np.abs(left)
        huber = np.where(size < HUBER, size**2, 2 * HUBER * size - HUBER**2)
        return float(huber.sum() + (((at - self.mean) / self.width) ** 2).sum())
