"""The task that `verify` gives the ranks: verify.json in the attempt's folder."""

from dataclasses import dataclass, field

from opensora_launch.plan.placement import Placement
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.schema.config import Engine, LayoutConfig
from opensora_launch.schema.kernel_kinds import Compile


@dataclass(frozen=True)
class VerifySpec:
    """Stored cases, or a plan of the current model for a reduced video, to run on these ranks and on one."""

    machine: Machine
    layout: LayoutConfig  # as configured
    attention: str
    threads_per_rank: int
    timeout_s: float
    cases: tuple[str, ...]  # absolute paths
    plan: Plan | None = None  # if there are no cases
    placement: Placement = field(default_factory=Placement)  # for the cases' transformers
    engine: Engine = Engine.native  # for the cases
    compile: Compile = Compile.off  # for the cases
    overlap: bool = False  # for the cases


@dataclass(frozen=True)
class VerifyLine:
    """One compared tensor; distances are the maximum over its elements."""

    case: str
    kind: str
    ranks: int
    layout: str
    tensor: str
    max_abs_stored: float | None  # None if nothing is stored
    max_abs_one_rank: float
    ok: bool

    def __str__(self) -> str:
        stored = "none" if self.max_abs_stored is None else f"{self.max_abs_stored:.3e}"
        return (
            f"case={self.case} kind={self.kind} ranks={self.ranks} layout={self.layout.replace(' ', ',')} "
            f"tensor={self.tensor} max_abs_stored={stored} max_abs_one_rank={self.max_abs_one_rank:.3e} "
            f"ok={'true' if self.ok else 'false'}"
        )
