"""Checks of a request that do not depend on the video's size. Each returns lines to show a user. Pure."""

from collections.abc import Iterator

from opensora_launch.errors import UserError, must_be_one_of, must_be_positive
from opensora_launch.plan.layout import LayoutFacts, layouts_by_rows, rules_of
from opensora_launch.plan.placement import placements
from opensora_launch.schema.autoencoder import VaeKind
from opensora_launch.schema.cards import PCIE_GB_S, Card
from opensora_launch.schema.config import (
    MAX_COUNT,
    MAX_SEED,
    MEASURED_MODELS,
    Engine,
    LauncherConfig,
    Link,
    MmditConfig,
    Precision,
    Quality,
    RunConfig,
    SamplingConfig,
    TopologyConfig,
)
from opensora_launch.schema.kernel_kinds import AttentionKind
from opensora_launch.schema.model_constants import FP8_MULTIPLE

ANYWHERE = (AttentionKind.auto, AttentionKind.reference)
ENDLESS = 2**62  # tokens


def early_problems(run: RunConfig, device: str, ranks: int, gpus_per_node: int) -> list[str]:
    """Return problems with numbers, the attention kernel and the layout's degrees, which hold for any video."""
    problems = sampling_problems(run.sampling) + count_problems(run.sampling) + model_problems(run.model.mmdit)
    problems += topology_problems(run.topology) + card_problems(run.hardware) + launcher_problems(run.launcher)
    if run.preview_every_steps < 0:
        problems.append(f"preview_every_steps={run.preview_every_steps} must be at least 0 (0: no previews)")
    problems += attention_problems(run.attention, device) + precision_problems(run, device) + untested_problems(run)
    problems += quality_problems(run) + fp8_problems(run, device)
    if ranks < 1 or run.model.mmdit.num_heads < 1:
        return problems
    try:
        placement = placements(run.placement, run.fit, ranks, gpus_per_node)[0]
        rules = rules_of(run.model.mmdit, run.engine, placement)
        facts = LayoutFacts(ranks, gpus_per_node, batches=1, max_rows=1, total_tokens=ENDLESS, rules=rules)
        layouts_by_rows(facts, run.layout)
    except UserError as impossible:
        problems += impossible.problems
    return problems


def count_problems(sampling: SamplingConfig) -> list[str]:
    """Return problems with counts that would keep even the planner busy for hours."""
    counts = {"num_steps": sampling.num_steps, "num_samples": sampling.num_samples}
    return [
        f"sampling.{name}={count} must be at most {MAX_COUNT}" for name, count in counts.items() if count > MAX_COUNT
    ]


def attention_problems(kind: AttentionKind, device: str) -> list[str]:
    """Return a problem if a named kernel does not run on this kind of device."""
    if kind in ANYWHERE or (kind is AttentionKind.cpu_flash) == (device == "cpu"):
        return []
    why = "it needs a GPU" if device == "cpu" else "it runs on CPUs only"
    return [f"attention={kind.value} cannot be used: {why}; use attention=auto"]


def precision_problems(run: RunConfig, device: str) -> list[str]:
    """Return problems with a precision that a known card lacks, or whose rate is unknown, and with TF32 for nothing."""
    card, precision = run.hardware, run.precision
    if run.numerics.tf32 and (precision is not Precision.fp32 or device == "cpu"):
        return ["numerics.tf32=true changes only fp32 products on GPUs; use precision=fp32, or leave it out"]
    if not card.known or device == "cpu" or precision is Precision.auto:
        return []
    lacking = [str(one.name) for one in card.each if one.tflops(precision.value) is None]
    if not lacking:
        return []
    if precision is Precision.fp32:
        return [f"precision=fp32: hardware.fp32_tflops of {', '.join(lacking)} is not known; give it"]
    return [f"precision={precision.value}: {', '.join(lacking)} does not support it; use fp32, or auto"]


def fp8_problems(run: RunConfig, device: str) -> list[str]:
    """Return why products cannot be computed in fp8: by the model, by the layout, or by the kind of device."""
    if not run.numerics.fp8_products:
        return []
    asked, cfg, problems = "numerics.fp8_products=true", run.model.mmdit, list[str]()
    if (blocks := cfg.depth + cfg.depth_single_blocks) < 3:
        problems.append(f"{asked} leaves the first and the last block alone, and the model has {blocks}; leave it out")
    if (run.layout.tp or 1) > 1:
        problems.append(f"{asked}: with layout.tp the rounding depends on the number of ranks; use layout.tp=1")
    if device == "cpu":
        return problems
    if run.precision not in (Precision.auto, Precision.bf16):
        problems.append(f"{asked} needs precision=bf16 on GPUs, not {run.precision.value}")
    wide = int(cfg.hidden_size * cfg.mlp_ratio)
    if cfg.hidden_size % FP8_MULTIPLE or wide % FP8_MULTIPLE:
        problems.append(
            f"{asked} needs multiples of {FP8_MULTIPLE} on GPUs, but hidden_size={cfg.hidden_size} and the "
            f"feed-forward has {wide} channels; leave it out"
        )
    lacking = [str(one.name) for one in run.hardware.each if run.hardware.known and one.fp8_tflops is None]
    if lacking:
        problems.append(f"{asked}: {', '.join(lacking)} has no products in fp8 (they need sm89 or newer); leave it out")
    return problems


def sampling_problems(sampling: SamplingConfig) -> list[str]:
    """Return problems with counts, names and the seed."""
    problems = list[str]()
    for name in ("num_steps", "num_samples", "batch_size", "reuse_every"):
        problems += must_be_positive(f"sampling.{name}", getattr(sampling, name), 1)
    problems += must_be_one_of("sampling.noise_device", sampling.noise_device, ("cpu", "cuda"))
    problems += must_be_one_of("sampling.state_dtype", sampling.state_dtype, ("fp32", "bf16"))
    if not 0 <= sampling.guidance_until <= 1:
        problems.append(f"sampling.guidance_until={sampling.guidance_until:g} must be between 0 and 1")
    if sampling.reuse_from < 1:
        problems.append(f"sampling.reuse_from={sampling.reuse_from} must be at least 1: step 0 reuses nothing")
    if sampling.flow_shift is not None and sampling.flow_shift <= 0:
        problems.append(f"sampling.flow_shift={sampling.flow_shift} must be more than 0, or null to compute it")
    if sampling.seed is not None and not 0 <= sampling.seed <= MAX_SEED:
        problems.append(f"sampling.seed={sampling.seed} must be between 0 and 2^63 - 1, or null for a random one")
    return problems


def quality_problems(run: RunConfig) -> list[str]:
    """Return a problem with a preset whose loss nobody measured for the model."""
    if run.quality is Quality.exact or run.model.name in MEASURED_MODELS:
        return []
    known = ", ".join(MEASURED_MODELS)
    return [
        f"quality={run.quality} was measured for model={known} only, not for {run.model.name}: use quality=exact,"
        " or set sampling.reuse_every and sampling.guidance_until yourself (docs/quality.md)"
    ]


def model_problems(mmdit: MmditConfig) -> list[str]:
    """Return problems with the sizes of heads and axes."""
    if mmdit.hidden_size % mmdit.num_heads:
        return [f"model.mmdit.hidden_size={mmdit.hidden_size} is not a multiple of num_heads={mmdit.num_heads}"]
    head_dim = mmdit.hidden_size // mmdit.num_heads
    if sum(mmdit.axes_dim) != head_dim:
        return [f"model.mmdit.axes_dim={mmdit.axes_dim} must add up to the head size {head_dim}"]
    return []


def untested_problems(run: RunConfig) -> list[str]:
    """Return a line per part of the model that is not tested with the engine."""
    kind = run.model.vae.kind
    parts = {
        "LoRAs": bool(run.model.lora),
        "image=": run.image.model is not None,
        "the Video DC-AE": kind is VaeKind.dc_ae,
        "image models": kind is VaeKind.image,
        "numerics.fp8_products": run.numerics.fp8_products,
    }
    found = [part for part, is_used in parts.items() if is_used and run.engine is not Engine.native]
    return [f"engine={run.engine} is not tested with {part}, so it is refused: use engine=native" for part in found]


def launcher_problems(launcher: LauncherConfig) -> list[str]:
    """Return problems with threads, checkpoints and the time limit."""
    problems = list[str]()
    if (threads := launcher.threads_per_rank) is not None and threads < 1:
        problems.append(f"launcher.threads_per_rank={threads} must be at least 1, or null for the default")
    if (launcher.checkpoint_every_steps or 0) < 0:
        problems.append(
            f"launcher.checkpoint_every_steps={launcher.checkpoint_every_steps} must be at least 0 (0: never), "
            f"or null for the default"
        )
    if launcher.timeout_s <= 0:
        problems.append(f"launcher.timeout_s={launcher.timeout_s} must be more than 0 seconds")
    return problems


def prediction_problems(run: RunConfig) -> list[str]:
    """Return problems with an attention kernel, which changes no prediction, and with NVLink that the card lacks."""
    card, link, problems = run.hardware, run.topology.link, list[str]()
    if run.attention is not AttentionKind.auto:
        problems.append(
            f"attention={run.attention.value} changes no prediction: the rates are those of published programs, each "
            f"with its fastest kernel; leave it out"
        )
    gpus = run.topology.gpus_per_node or 1
    if link is Link.nvlink and card.known and (card.nvlink_gb_s is None or card.nvlink_gpus < gpus):
        few = f"joins {card.nvlink_gpus} GPUs by NVLink, not {gpus}"
        has = few if card.nvlink_gb_s else "has no NVLink"
        problems.append(f"topology.link=nvlink: {card.name} {has}; use topology.link=pcie")
    return problems


def topology_problems(topology: TopologyConfig) -> list[str]:
    """Return problems with counts and links; null is allowed, because the launcher fills it in."""
    least = {"nodes": 1, "gpus_per_node": 1, "link_gb_s": None, "node_link_gb_s": None, "disk_gb_s": None}
    each = (must_be_positive(f"topology.{name}", getattr(topology, name), low) for name, low in least.items())
    return [line for lines in each for line in lines]


def card_problems(card: Card) -> list[str]:
    """Return problems with the facts of a named card; none if the card is still to be found."""
    return list(_card_problems(card)) if card.name is not None else []


def _card_problems(card: Card) -> Iterator[str]:
    efficiencies = ("matmul_efficiency", "attention_efficiency", "link_efficiency")
    rates = ("bf16_tflops", "fp16_tflops", "fp8_tflops", "tf32_tflops", "fp32_tflops")
    for name in ("memory_gib", "bandwidth_gb_s", *rates, "nvlink_gb_s", *efficiencies):
        yield from must_be_positive(f"hardware.{name}", getattr(card, name))
    for name in efficiencies:
        if (getattr(card, name) or 0) > 1:
            yield f"hardware.{name}={getattr(card, name)} must be at most 1: it is a share of the peak"
    for name, least in (("tdp_w", 0), ("price_usd", 0), ("nvlink_gpus", 1), ("pcie_lanes", 1)):
        yield from must_be_positive(f"hardware.{name}", getattr(card, name), least)
    if card.bf16_tflops is None and card.fp16_tflops is None:
        yield "hardware.bf16_tflops or hardware.fp16_tflops must be set: the rate at which the card computes"
    if card.pcie_generation not in PCIE_GB_S:
        known = ", ".join(map(str, PCIE_GB_S))
        yield f"hardware.pcie_generation={card.pcie_generation} is not known; use one of {known}"
