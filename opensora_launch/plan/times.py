"""Predict the time of a denoising step: FLOPs and bytes from `costs` divided by the `Rates` of a card.

    step = max(compute + exposed communication, launch)

compute        products / their rate + attention / its rate + elementwise bytes / memory rate, on the busiest rank
communication  Ulysses bytes / link, minus what the blocks hide if it overlaps; ring bytes / link minus what the ring
               hides behind its own attention; sums of products with divided weights (tp), which nothing hides; sharded
               weights gathered ahead of use, minus what compute hides
launch         CPU time to start the kernels of every block: the lower limit with few tokens

Rates are peaks from data sheets times efficiencies fitted to published tables (docs/prediction.md).
"""

import math
from dataclasses import dataclass

from opensora_launch.errors import UserError
from opensora_launch.plan.costs import (
    elementwise_bytes,
    latent_bytes,
    merge_bytes,
    row_traffic,
    row_work,
    tensor_parallel_bytes,
    tensor_parallel_calls,
    uneven,
    uneven_products,
    weight_bytes,
)
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.networks import Network, TokenGrid
from opensora_launch.schema.cards import LINK_EFFICIENCY, Card, default_efficiency
from opensora_launch.schema.config import Link, TopologyConfig
from opensora_launch.schema.even_shares import chunk_counts
from opensora_launch.schema.model_constants import HEAD_GROUPS

MEMORY_EFFICIENCY, PCIE_CROWD, VAE_EFFICIENCY = 0.61, 0.872, 0.0481  # fitted over all cards
QKV_SHARE = 0.25  # of a block's products: 3 of 12 H^2 per token, with a feed-forward of 4 H
COMPILED_LAUNCH = 0.4  # CPU time to start a compiled block, over an eager one: its share of kernels (count_kernels)


@dataclass(frozen=True)
class Rates:
    """What a card and its links reach per second. Defaults are fitted over all cards."""

    matmul_flops: float
    attention_flops: float
    memory_bytes: float
    link_bytes: float  # from one GPU to others of its node, one way
    crowd: float = 1.0  # share of `link_bytes` that remains if more than two GPUs exchange over PCIe
    node_link_bytes: float = 25e9  # to a GPU of another node
    call_s: float = 28.6e-6  # latency of a collective or hop
    ring_hidden: float = 0.809  # share of a hop's attention that hides the hop's transfer
    gather_hidden: float = 1.0  # share of compute that hides the gathering of sharded weights; fitted: 1.02
    block_launch_s: float = 2.29e-3  # CPU time to start the kernels of a block in eager mode
    hop_launch_s: float = 0.5e-3  # additional CPU time with a ring
    host_bytes: float = 20e9  # from host memory to a GPU
    copy_hidden: float = 0.8  # share of compute that hides copies of weights from the host
    vae_flops: float = 50e12  # rate of the VAE's convolutions


def rates_of(card: Card, topology: TopologyConfig, products: str, fp8_share: float = 0.0) -> Rates:
    """Return the rates expected of a card: its peaks times the efficiencies fitted to it, or to all cards.

    `products` is the type of the matrix products, as in `Card.tflops`. The fitted efficiencies are those of bf16 and
    fp16; fp32 and TF32 follow the general rule. The VAE waits for memory, so it takes twice as long in fp32 or longer.
    `fp8_share` of the products are as much faster as the card's peak in fp8 is higher; the rounding is not counted.
    """
    tflops = card.tflops(products)
    if not tflops:
        raise UserError(f"the rate of {card.name} in {products} is not known")
    half = products in ("bf16", "fp16")
    rule = default_efficiency(tflops)
    matmul = tflops * 1e12 * ((card.matmul_efficiency if half else None) or rule)
    matmul /= 1 - fp8_share + fp8_share * tflops / (card.fp8_tflops or tflops)
    vae = card.half_tflops * 1e12 * VAE_EFFICIENCY
    nvlink = uses_nvlink(card, topology)
    pcie = card.pcie_gb_s
    if topology.link_gb_s is not None:
        link = topology.link_gb_s
    elif nvlink:
        link = (card.nvlink_gb_s or pcie) * (card.link_efficiency or LINK_EFFICIENCY["nvlink"])
    else:
        link = pcie * (
            LINK_EFFICIENCY["pcie"] if nvlink_card(card) else card.link_efficiency or LINK_EFFICIENCY["pcie"]
        )
    return Rates(
        matmul_flops=matmul,
        attention_flops=tflops * 1e12 * ((card.attention_efficiency if half else None) or rule),
        memory_bytes=card.bandwidth_gb_s * 1e9 * MEMORY_EFFICIENCY,
        link_bytes=link * 1e9,
        crowd=1.0 if nvlink else PCIE_CROWD,
        node_link_bytes=topology.node_link_gb_s * 1e9,
        host_bytes=pcie * 1e9 * LINK_EFFICIENCY["pcie"],
        vae_flops=vae if half else min(vae / 2, matmul),
    )


def nvlink_card(card: Card) -> bool:
    """Return whether the card has NVLink at all."""
    return card.nvlink_gb_s is not None


def uses_nvlink(card: Card, topology: TopologyConfig) -> bool:
    """Return whether NVLink connects all GPUs of a node: by config, or by the card's facts. Bridges join pairs only."""
    if topology.link is not Link.auto:
        return topology.link is Link.nvlink and nvlink_card(card)
    return nvlink_card(card) and card.nvlink_gpus >= (topology.gpus_per_node or 1)


@dataclass(frozen=True)
class StepLoad:
    """One denoising step of one batch."""

    net: Network
    grid: TokenGrid
    rows: int
    layout: Layout
    gpus_per_node: int
    sharded: int = 1  # ranks that share the weights; 1: replicated
    offloaded: bool = False  # weights are copied from host memory ahead of use
    rows_at_once: int = 0  # rows in one forward of a rank; 0: all its rows
    away: float = 1.0  # share of the weights that is sharded or offloaded; the rest stays on every GPU
    packed: float = 1.0  # bytes of transferred weights, relative to `element_bytes`
    tokens_at_once: int = 0  # tokens that a block processes between its sums; 0: all
    element_bytes: int = 2
    compiled: bool = False  # weights that tp divides are never compiled: their sums lie between the kernels
    overlap: bool = False  # Ulysses exchanges while the blocks compute


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the busiest rank. They add up to `total`."""

    compute: float
    ulysses: float
    ring: float  # not hidden
    tensor: float  # sums of products with divided weights
    gather: float  # of latents, guidance rows and sharded weights, not hidden
    launch: float  # time by which the CPU is late

    @property
    def total(self) -> float:
        return self.compute + self.communication + self.launch

    @property
    def communication(self) -> float:
        return self.ulysses + self.ring + self.tensor + self.gather


@dataclass(frozen=True)
class StepCounts:
    """The FLOPs, bytes and calls of the busiest rank in a step, before rates are applied."""

    matmul_flops: float
    attention_flops: float
    elementwise_bytes: float
    ulysses_bytes: float
    ulysses_calls: int
    spans: int  # parts in which q, k and v of a rank are sent; 1: all at once
    head_groups: int  # parts in which its result is sent
    ring_bytes: float
    ring_calls: int
    ring_share: float  # share of the attention that is computed during a hop's transfer
    latent_bytes: float
    tensor_bytes: float
    tensor_calls: int
    weight_bytes: float  # gathered, if weights are sharded
    copied_bytes: float  # from host memory, if weights are offloaded
    launches: int  # of blocks
    compiled: bool
    wide: bool  # whether more than two GPUs exchange
    wide_ulysses: bool
    wide_tensor: bool
    tensor_leaves: bool  # whether the tp axis, the ulysses axis, the ring or the gather crosses nodes
    near_leaves: bool
    far_leaves: bool
    gather_leaves: bool


def step_counts(load: StepLoad) -> StepCounts:
    """Count one step. If ranks have different shares, the largest counts."""
    net, layout = load.net, load.layout
    size = load.element_bytes
    work, traffic = row_work(net, load.grid), row_traffic(net, load.grid, layout, size)
    rows, split = math.ceil(load.rows / layout.cfg), layout.sequence * layout.tp
    ranks = layout.cfg * layout.sequence
    heads = uneven(net.heads, layout.tp) * uneven(math.ceil(net.heads / layout.tp), layout.ulysses)
    forwards = math.ceil(rows / load.rows_at_once) if load.rows_at_once else 1
    moved = forwards * weight_bytes(net, size) * load.away * load.packed
    compiled = load.compiled and layout.tp == 1
    elementwise = elementwise_bytes(net, work.tokens, layout.tp, size, compiled=compiled) / layout.sequence
    here = math.ceil(rows / forwards), math.ceil(work.tokens / layout.sequence)
    pieces = math.prod(chunk_counts(*here, load.tokens_at_once)) if load.tokens_at_once else 1
    overlap, own_heads = load.overlap and layout.ulysses > 1, max(1, net.heads // layout.tp // layout.ulysses)
    return StepCounts(
        spans=pieces if overlap else 1,
        head_groups=min(HEAD_GROUPS, own_heads) if overlap and layout.ring == 1 else 1,
        matmul_flops=rows * work.matmul_flops / split * uneven_products(net, layout.tp),
        attention_flops=rows * work.attention_flops / split * heads,
        elementwise_bytes=rows * (elementwise + merge_bytes(net, load.grid, layout)),
        ulysses_bytes=rows * traffic.ulysses_bytes,
        ulysses_calls=forwards * traffic.ulysses_calls,
        ring_bytes=rows * traffic.ring_bytes,
        ring_calls=forwards * traffic.ring_calls,
        ring_share=(layout.ring - 1) / layout.ring,
        latent_bytes=load.rows * latent_bytes(net, load.grid) * (ranks - 1) / ranks,
        tensor_bytes=rows * tensor_parallel_bytes(net, load.grid, layout.tp, size) / layout.sequence,
        tensor_calls=forwards * tensor_parallel_calls(net, pieces) * (layout.tp > 1),
        weight_bytes=moved * (load.sharded - 1) / load.sharded,
        copied_bytes=moved / load.sharded * load.offloaded,
        launches=forwards * net.blocks,
        compiled=compiled,
        wide=max(ranks, load.sharded) > 2,
        wide_ulysses=layout.ulysses > 2,
        wide_tensor=layout.tp > 2,
        tensor_leaves=load.gpus_per_node % layout.tp != 0,
        near_leaves=load.gpus_per_node % (layout.ulysses * layout.tp) != 0,
        far_leaves=load.gpus_per_node % (layout.sequence * layout.tp) != 0,
        gather_leaves=max(ranks * layout.tp, load.sharded) > load.gpus_per_node,
    )


def step_time(counts: StepCounts, rates: Rates) -> StepTime:
    """Return the seconds of one step on the busiest rank."""
    attention = counts.attention_flops / rates.attention_flops
    compute = attention + counts.matmul_flops / rates.matmul_flops + counts.elementwise_bytes / rates.memory_bytes
    ulysses = _ulysses_s(counts, rates, attention)
    ring = counts.ring_calls * rates.call_s + counts.ring_bytes / _link(rates, counts.far_leaves, False)
    ring = max(0.0, ring - rates.ring_hidden * attention * counts.ring_share)
    wire = _link(rates, counts.gather_leaves, counts.wide)
    tensor = counts.tensor_calls * rates.call_s
    tensor += counts.tensor_bytes / _link(rates, counts.tensor_leaves, counts.wide_tensor)
    gather = counts.latent_bytes / wire
    gather += sum(exposed for _, exposed in weight_transfers(counts, rates, compute))
    block = rates.block_launch_s * (COMPILED_LAUNCH if counts.compiled else 1.0)
    launch = counts.launches * (block + (counts.ring_calls > 0) * rates.hop_launch_s)
    late = max(0.0, launch - compute - ulysses - ring - tensor - gather)
    return StepTime(compute, ulysses, ring, tensor, gather, late)


def _ulysses_s(counts: StepCounts, rates: Rates, attention_s: float) -> float:
    """Return the seconds of Ulysses' exchanges that computation does not hide.

    While one span is sent, the next one is projected (QKV_SHARE of the products); while the result of one group of
    heads is sent, the next group attends. As much of that hides a transfer as in a ring's hop. q, k and v are three
    quarters of the bytes. Each further span or group costs one more call.
    """
    sent = counts.ulysses_bytes / _link(rates, counts.near_leaves, counts.wide_ulysses)
    calls = counts.ulysses_calls * (counts.spans + counts.head_groups) / 2 * rates.call_s
    projecting = QKV_SHARE * counts.matmul_flops / rates.matmul_flops
    hidden = 0.0
    for parts, share, beside in ((counts.spans, 0.75, projecting), (counts.head_groups, 0.25, attention_s)):
        hidden += (parts - 1) / parts * min(share * sent, rates.ring_hidden * beside)
    return sent - hidden + calls


def weight_transfers(counts: StepCounts, rates: Rates, compute_s: float) -> tuple[tuple[float, float], ...]:
    """Return (seconds, seconds not hidden by compute) of weights from other ranks, then from host memory."""
    between = counts.weight_bytes / _link(rates, counts.gather_leaves, counts.wide)
    from_host = counts.copied_bytes / rates.host_bytes
    return (
        (between, max(0.0, between - rates.gather_hidden * compute_s)),
        (from_host, max(0.0, from_host - rates.copy_hidden * compute_s)),
    )


def _link(rates: Rates, leaves_node: bool, crowded: bool) -> float:
    """Return the bytes per second that a rank sends."""
    inside = rates.link_bytes * (rates.crowd if crowded else 1.0)
    return min(inside, rates.node_link_bytes) if leaves_node else inside
