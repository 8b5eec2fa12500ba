"""Peak rates of the card that a run was on, and what the planner predicted of it: from the run's own config.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opensora_launch.cards import PCIE_GB_S, HardwareConfig
from opensora_launch.config import LayoutConfig, RunConfig
from opensora_launch.errors import UserError
from opensora_launch.plan.codec import decode
from opensora_launch.plan.plan import Plan, predict
from opensora_launch.report.accounting import Accounts


@dataclass(frozen=True)
class Card:
    """Rates one way and dense; None is not known."""

    name: str
    flops_per_s: Mapping[str, float]  # by precision
    nvlink_bytes_per_s: float | None
    nvlink_gpus: int
    pcie_bytes_per_s: float | None

    def link_bytes_per_s(self, ranks: int) -> float | None:
        """Of the link between so many GPUs of one node."""
        return self.nvlink_bytes_per_s if ranks <= self.nvlink_gpus else self.pcie_bytes_per_s


def read_config(run_dir: Path) -> RunConfig | None:
    """The config that the run was made from; None where there is none that this version reads."""
    import yaml

    try:
        found: RunConfig = decode(RunConfig, yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return None
    return found


def card_of(config: RunConfig | None) -> Card | None:
    """None on CPUs and for cards that are not in configs/hardware."""
    if config is None or not config.hardware.known:
        return None
    card: HardwareConfig = config.hardware
    rates = {"bf16": card.bf16_tflops, "fp16": card.fp16_tflops}
    nvlink, pcie = card.nvlink_gb_s, PCIE_GB_S.get(card.pcie_generation)
    return Card(
        name=str(card.name),
        flops_per_s={precision: rate * 1e12 for precision, rate in rates.items() if rate},
        nvlink_bytes_per_s=nvlink * 1e9 if nvlink else None,
        nvlink_gpus=card.nvlink_gpus,
        pcie_bytes_per_s=pcie * 1e9 if pcie else None,
    )


def prediction(
    config: RunConfig | None, plan: Plan, accounts: Accounts
) -> tuple[list[dict[str, Any]] | None, str | None]:
    """The planner's seconds beside the measured ones, by phase; or why there are none."""
    if config is None or not config.hardware.known:
        return None, "the card is not in configs/hardware, or ranks are on CPUs: the planner has no rates for it"
    try:
        _, found = predict(config, plan.machine, plan.videos)
    except (UserError, ValueError, ZeroDivisionError) as error:
        return None, f"the planner could not predict it: {error}"
    option = next((o for o in found if o.layouts == plan.layouts), None)
    if option is None:
        return None, "the planner does not know this layout"
    most = {part: max(r.parts[part] for r in accounts.ranks) for part in ("load", "text", "vae", "save")}
    denoise = max(r.denoise_s for r in accounts.ranks)
    phases = option.phases
    pairs = {
        "load": (phases.load, most["load"]),
        "text": (phases.text, most["text"]),
        "denoise": (phases.denoise, denoise),
        "vae": (phases.vae, most["vae"]),
        "save": (phases.save, most["save"]),
        "total": (phases.total, accounts.wall_s),
    }
    return [{"what": what, "predicted_s": p, "measured_s": m} for what, (p, m) in pairs.items()], None


def better_layout(config: RunConfig | None, plan: Plan, accounts: Accounts) -> tuple[str, str, float] | None:
    """What a layout of the planner's own choice would save: (what, change, seconds of this run's time).

    The planner's predicted ratio, applied to the measured time; None where it knows no better one.
    """
    if config is None or not config.hardware.known or plan.machine.ranks == 1:
        return None
    try:
        _, now = predict(config, plan.machine, plan.videos)
        _, free = predict(replace(config, layout=LayoutConfig()), plan.machine, plan.videos)
    except (UserError, ValueError, ZeroDivisionError):
        return None
    ours = next((option for option in now if option.layouts == plan.layouts), None)
    best = free[0] if free and free[0].fits else None
    if ours is None or best is None or best.phases.making >= ours.phases.making:
        return None
    layout = best.layout
    change = " ".join(f"layout.{axis}={getattr(layout, axis)}" for axis in vars(layout))
    share = 1 - best.phases.making / ours.phases.making
    making = accounts.wall_s - max(r.parts["setup"] + r.parts["load"] + r.parts["text"] for r in accounts.ranks)
    return f"the planner predicts {share:.0%} less for another layout than {ours.layout}", change, share * making
