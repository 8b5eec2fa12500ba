"""Why a request has no plan, as far as that shows before its size is known. Pure."""

from opensora_launch.config import AttentionKind, LayoutConfig, RunConfig, SamplingConfig
from opensora_launch.errors import UserError
from opensora_launch.plan.layout import LayoutFacts, layouts_by_rows

ANYWHERE = (AttentionKind.auto, AttentionKind.reference)
MOST = 10_000  # steps and samples, of a run as of a line of a prompt file: a zero too many
ENDLESS = 2**62  # tokens


def early_problems(run: RunConfig, device: str, ranks: int, gpus_per_node: int) -> list[str]:
    """What is wrong with counts, the attention kernel and the layout's degrees, whatever the video."""
    problems = count_problems(run.sampling) + attention_problems(run.attention, device)
    if ranks < 1 or run.model.mmdit.num_heads < 1:
        return problems
    facts = LayoutFacts(ranks, gpus_per_node, run.model.mmdit.num_heads, batches=1, max_rows=1, total_tokens=ENDLESS)
    try:
        layouts_by_rows(facts, LayoutConfig(**vars(run.layout)))
    except UserError as impossible:
        problems += impossible.problems
    return problems


def count_problems(sampling: SamplingConfig) -> list[str]:
    """Counts that would keep even the planner busy for hours."""
    counts = {"num_steps": sampling.num_steps, "num_samples": sampling.num_samples}
    return [f"sampling.{name}={count} must be at most {MOST}" for name, count in counts.items() if count > MOST]


def attention_problems(kind: AttentionKind, device: str) -> list[str]:
    """A kernel that was named and is of the other kind of device."""
    if kind in ANYWHERE or (kind is AttentionKind.cpu_flash) == (device == "cpu"):
        return []
    why = "it needs a GPU" if device == "cpu" else "it runs on CPUs"
    return [f"attention={kind.value} cannot be used: {why}; use attention=auto"]
