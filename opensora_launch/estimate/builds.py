"""Power, cooling and cost of a machine: its power supply, its heat, and when it becomes cheaper than a cloud."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from opensora_launch.estimate.cost import HOURS_PER_MONTH

PSU_SIZES_W = (450, 550, 650, 750, 850, 1000, 1200, 1300, 1500, 1600, 2000)  # common ATX power supplies
BTU_PER_HOUR_PER_W = 3.412
CFM_PER_W_AND_KELVIN = 1.76  # air at sea level: cubic feet per minute = 1.76 x W / K
RISE_K = 10.0  # of the air's temperature
CONTINUOUS_SHARE = 0.8  # share of a circuit's rating for continuous loads (US National Electrical Code, 210.20)
CIRCUITS = ((120, 15), (120, 20), (240, 16), (240, 30))  # volts, amperes


@dataclass(frozen=True)
class Build:
    """One machine. Prices are in USD; `other_w` covers mainboard, drives, fans and losses."""

    gpus: int
    gpu_w: float
    cpu_w: float
    other_w: float
    parts_usd: tuple[tuple[str, float], ...]

    @property
    def draw_w(self) -> float:
        """Power draw at full load: GPUs x TDP + CPU + other."""
        return self.gpus * self.gpu_w + self.cpu_w + self.other_w

    @property
    def price_usd(self) -> float:
        return sum(price for _, price in self.parts_usd)


class Cooling(NamedTuple):
    btu_per_hour: float
    airflow_cfm: float
    circuit: str


def supplies(draw_w: float, reserve: float) -> tuple[int, int]:
    """Choose the fewest power supplies, then the smallest size, for draw x (1 + reserve): number, watts of each."""
    needed = draw_w * (1 + reserve)
    count = max(1, math.ceil(needed / PSU_SIZES_W[-1]))
    return count, next(size for size in PSU_SIZES_W if size * count >= needed)


def gpu_cap_w(build: Build, supply_w: float) -> float:
    """Return the power limit per GPU that a supply allows: (supply - CPU - other) / GPUs, at most the TDP."""
    return min(build.gpu_w, (supply_w - build.cpu_w - build.other_w) / build.gpus)


def cooling(draw_w: float) -> Cooling:
    """Return heat (BTU/h = 3.412 W), airflow for a temperature rise of 10 K (CFM = 1.76 W / K), and the circuit."""
    fitting = (f"{volts} V, {amps} A" for volts, amps in CIRCUITS if volts * amps * CONTINUOUS_SHARE >= draw_w)
    circuit = next(fitting, "several circuits, or three-phase power")
    return Cooling(draw_w * BTU_PER_HOUR_PER_W, CFM_PER_W_AND_KELVIN * draw_w / RISE_K, circuit)


class Purchase(NamedTuple):
    """A purchased machine compared with renting the same GPUs for its hours of operation."""

    power_usd_per_month: float
    cloud_usd_per_month: float
    months_to_break_even: float | None  # None: never, because the cloud costs less than the electricity


def purchase_or_cloud(build: Build, hours_per_month: float, usd_per_kwh: float, cloud_usd_per_hour: float) -> Purchase:
    """Compare: months = price / (cloud - electricity, per month). `cloud_usd_per_hour` is for the whole machine."""
    power = build.draw_w / 1000 * hours_per_month * usd_per_kwh
    cloud = cloud_usd_per_hour * hours_per_month
    return Purchase(power, cloud, build.price_usd / (cloud - power) if cloud > power else None)


def usd_per_gpu_hour(build: Build, life_months: float, hours_per_month: float = HOURS_PER_MONTH) -> float:
    """Return the price spread over the GPU hours of the machine's lifetime, without electricity."""
    return build.price_usd / (life_months * hours_per_month * build.gpus)
