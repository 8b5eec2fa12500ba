"""Power, cooling and money of a machine: which supply it needs, what it heats, and when it is cheaper than a cloud."""

import math
from dataclasses import dataclass

from opensora_launch.estimate.cost import HOURS_PER_MONTH

PSU_SIZES_W = (450, 550, 650, 750, 850, 1000, 1200, 1300, 1500, 1600, 2000)  # ATX supplies that are sold
BTU_PER_HOUR_PER_W = 3.412
CFM_PER_W_AND_KELVIN = 1.76  # air at sea level: cubic feet a minute = 1.76 x W / K
CONTINUOUS_SHARE = 0.8  # of a circuit's rating may be drawn for hours (US National Electrical Code, 210.20)
CIRCUITS = ((120, 15), (120, 20), (240, 16), (240, 30))  # volts, amperes


@dataclass(frozen=True)
class Build:
    """One machine. Prices in USD; `other` is mainboard, drives, fans and losses."""

    gpus: int
    gpu_w: float
    cpu_w: float
    other_w: float
    parts_usd: tuple[tuple[str, float], ...]

    @property
    def draw_w(self) -> float:
        """Everything at full load: GPUs x TDP + CPU + other."""
        return self.gpus * self.gpu_w + self.cpu_w + self.other_w

    @property
    def price_usd(self) -> float:
        return sum(price for _, price in self.parts_usd)


@dataclass(frozen=True)
class Supplies:
    """`count` power supplies of `size_w` each."""

    count: int
    size_w: int


@dataclass(frozen=True)
class Cooling:
    watts: float
    btu_per_hour: float
    airflow_cfm: float
    circuit: str


def supplies(draw_w: float, reserve: float) -> Supplies:
    """The smallest supplies of one size that carry draw x (1 + reserve): one, or as few as do."""
    needed = draw_w * (1 + reserve)
    count = max(1, math.ceil(needed / PSU_SIZES_W[-1]))
    return Supplies(count, next(size for size in PSU_SIZES_W if size * count >= needed))


def gpu_cap_w(build: Build, supply_w: float) -> float:
    """The power limit of each GPU at which the machine draws what the supply gives: (supply - CPU - other) / GPUs."""
    return min(build.gpu_w, (supply_w - build.cpu_w - build.other_w) / build.gpus)


def cooling(draw_w: float, rise_k: float = 10.0) -> Cooling:
    """Heat is the draw: BTU/h = 3.412 W; air that warms by `rise_k`: CFM = 1.76 W / K; the circuit that carries it."""
    fitting = (f"{volts} V, {amps} A" for volts, amps in CIRCUITS if volts * amps * CONTINUOUS_SHARE >= draw_w)
    return Cooling(
        draw_w,
        draw_w * BTU_PER_HOUR_PER_W,
        CFM_PER_W_AND_KELVIN * draw_w / rise_k,
        next(fitting, "more than one circuit, or three-phase"),
    )


@dataclass(frozen=True)
class Purchase:
    """A machine that is bought, against the same GPUs rented for the hours that they work."""

    price_usd: float
    power_usd_per_month: float
    cloud_usd_per_month: float
    months_to_break_even: float | None  # None: never, the cloud is cheaper even than the electricity

    @property
    def cheaper_after(self) -> str:
        months = self.months_to_break_even
        return "never" if months is None else f"{months:.1f} months"


def purchase_or_cloud(build: Build, hours_per_month: float, usd_per_kwh: float, cloud_usd_per_hour: float) -> Purchase:
    """months = price / (cloud a month - electricity a month). `cloud_usd_per_hour` is for the whole machine."""
    power = build.draw_w / 1000 * hours_per_month * usd_per_kwh
    cloud = cloud_usd_per_hour * hours_per_month
    return Purchase(build.price_usd, power, cloud, build.price_usd / (cloud - power) if cloud > power else None)


def usd_per_gpu_hour(build: Build, life_months: float, hours_per_month: float = HOURS_PER_MONTH) -> float:
    """The purchase spread over the hours that its GPUs work in its life, without electricity."""
    return build.price_usd / (life_months * hours_per_month * build.gpus)
