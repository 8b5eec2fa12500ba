"""Count the bytes that a run needs in each phase: on the busiest GPU, in a node's host memory, and read from disk.

Peaks of activations follow the code of the blocks. They count the tensors that are alive at the same time, in units of
one activation U = rows x share of the tokens x H x E. Tests compare them with what an allocator sees.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from opensora_launch.plan.costs import block_weight_bytes, block_weights, uneven, weight_bytes
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.networks import VAES, Network, TokenGrid
from opensora_launch.plan.placement import Placement, staying
from opensora_launch.plan.rank_sets import gathers_apart, gathers_on_node
from opensora_launch.plan.set_aside import RESERVED_BYTES, set_aside_bytes
from opensora_launch.plan.video_size import VideoSize, busiest_pixels
from opensora_launch.schema.config import Engine, Offload, Shard, Storage
from opensora_launch.schema.even_shares import chunk_counts
from opensora_launch.schema.model_constants import TOKENS_AT_ONCE, VAE_CHUNK_NUMBERS

GIB = 2.0**30
USABLE = 0.985  # share of NVML's total that CUDA can allocate: 39.4 of 40.0 GiB, 23.6 of 24.0 in PyTorch's messages
FRAGMENTS = 1.02  # memory that the allocator holds, over the live bytes
RANK_HOST_BYTES = 3.0 * GIB  # a process with torch and CUDA, embeddings, frames waiting to be written
VAE_TILE_UNITS = 3  # live tensors with 128 channels at full size in the decoder's last stage
VAE_CHANNELS = 128
VAE_CHUNK_COPIES = 7.2 / 2  # copies of a chunk: normalised in fp32, rounded, padded
TEXT_WINDOW = 0.14  # share of the text encoders in memory: two of T5's 24 layers, its token table, CLIP
FP8_BYTES = 1.002  # bytes per weight, including the scales of the rows
TEXT_WHOLE_GIB = 0.5  # CLIP and T5's token embedding, which are not divided


@dataclass(frozen=True)
class Memory:
    """Bytes. `text`, `denoise` and `decode` are the phases' peaks on the busiest GPU, with what is `set_aside`."""

    weights: float  # of the transformer, kept on a GPU
    activations: float
    text: float
    denoise: float
    decode: float
    host: float  # per node
    disk: float  # read per node
    set_aside: float  # on a GPU, for CUDA, its libraries and NCCL

    @property
    def peak(self) -> float:
        return max(self.text, self.denoise, self.decode)


def activation_bytes(
    net: Network,
    grid: TokenGrid,
    layout: Layout,
    rows: int,
    element_bytes: int,
    at_once: int = TOKENS_AT_ONCE,
    *,
    overlap: bool = False,
) -> float:
    """Return the peak bytes of one forward of `rows` rows on the busiest rank, in addition to weights and inputs.

    In units U of one activation, with m = F/H, the share c of the tokens that is widened at once, and the rank's part p
    of the heads and the feed-forward (1 if weights are whole, about 1/tp if they are divided):

    projecting   x, q, k, v, and those of a chunk while one is rotated in fp32: 1 + 3 p + 7.5 c p (6 c p in fp32);
                 what is sent of earlier chunks and received, if Ulysses overlaps: 3 p + 3 (1 - c) p (U-1)/U more
    attending    x, q, k, v and the result: 1 + 4.2 p. Ulysses 1 + 8 p, or what is sent and received if that is more:
                 1 + 6.1 p + 3 p (U-1)/U. A ring 1 + 11.1 p (two blocks of keys and values in transit, results in fp32),
                 2 p more for more than two hops, 1 p more with Ulysses
    finishing    x, attention output, and of a chunk: its sum, normed, and widened twice: 1 + p + 2 c + 2 m c p, and
                 c p more if the chunk has several rows; or widened once and the second product: 1 + p + 3 c + m c p
    at the ends  three activations: two and their sum, or the last ones, normed and modulated: 3

    Products in fp8 round the widest input of a chunk and then its weight, each by way of fp32.
    """
    wide = net.feed_forward / net.hidden
    narrow = element_bytes < 4
    tokens = math.ceil(grid.total_tokens / layout.sequence)
    parts = chunk_counts(rows, tokens, at_once)
    c = math.ceil(rows / parts[0]) / rows * math.ceil(tokens / parts[1]) / tokens
    p = uneven(net.heads, layout.tp) / layout.tp
    heads, away = 4.2, 3 * (layout.ulysses - 1) / layout.ulysses
    if layout.ulysses > 1:
        heads = max(8.0, 6.1 + away)
    if layout.ring > 1:
        both, many = layout.ulysses > 1, layout.ring > 2
        heads = max(heads, 11.1 + 2 * many + both if narrow else 8.2 + 3.1 * many + both)
    early = 3 + (1 - c) * away if overlap and layout.ulysses > 1 else 0.0
    units = max(
        3.0,
        1 + heads * p,
        1 + (3 + early) * p + (7.5 if narrow else 6.0) * c * p,
        1 + p + 2 * c + (2 * wide + (rows > parts[0])) * c * p,
        1 + p + 3 * c + wide * c * p,
    )
    table = 8.0 * net.head_dim  # cos and sin of all channels in fp32, for all rows
    rounded = 0.0
    if net.fp8_share:
        inputs, weight = (count * (net.hidden + net.feed_forward) for count in (c * rows * tokens, net.hidden))
        rounded = max(5 * inputs, inputs + 5 * weight)
    return tokens * (rows * units * net.hidden * element_bytes + table) + rounded


def memory_of(
    net: Network,
    grid: TokenGrid,
    video: VideoSize,
    step: tuple[int, Layout],
    *,
    gpus_per_node: int,
    placement: Placement,
    element_bytes: int,
    t5_parts: int = 0,
    set_aside: float = RESERVED_BYTES,
    overlap: bool = False,
) -> Memory:
    """Return the memory of steps with some rows in a layout. `set_aside` is that of one rank alone if it is not given.

    `text` is the least that text encoding needs: a window of the encoders, or T5 in `t5_parts` with ColossalAI. If
    there is room, text encoding uses all encoders.
    """
    rows, layout = step
    weights = resident_weights(net, layout, gpus_per_node, placement, element_bytes)
    vae = VAES[net.vae].parameters * element_bytes
    mine = math.ceil(rows / layout.cfg)
    at_once = min(mine, placement.rows_at_once or mine)
    activations = activation_bytes(net, grid, layout, at_once, element_bytes, overlap=overlap)
    latents = 4.0 * grid.video_tokens * net.tokens_in * (3 + 2 * rows)
    return Memory(
        weights=weights.held + weights.buffers,
        activations=activations,
        text=set_aside + FRAGMENTS * (_text_gib(net, t5_parts) * GIB + 0.1 * GIB),
        denoise=set_aside + FRAGMENTS * (weights.held + weights.buffers + vae + activations + latents),
        decode=set_aside + FRAGMENTS * (weights.held + vae + decode_bytes(net, video, layout, element_bytes)),
        host=_host_bytes(net, layout, gpus_per_node, placement, element_bytes),
        disk=net.networks * weight_bytes(net, element_bytes) + vae + net.text_gib * GIB,
        set_aside=set_aside,
    )


def memory_of_run(
    net: Network,
    grid: TokenGrid,
    video: VideoSize,
    layouts: Sequence[tuple[int, Layout]],
    *,
    gpus_per_node: int,
    placement: Placement,
    element_bytes: int,
    engine: Engine,
    nvlink: bool,
    overlap: bool = False,
) -> Memory:
    """Return the memory of the steps that need the most. `layouts` are (rows of a step, its layout), rows ascending."""
    on_node = gathers_on_node(engine, layouts[-1][1], placement)
    apart = on_node and gathers_apart(layouts[-1][1], placement, overlap=overlap)
    of_steps = tuple(layout for _, layout in layouts)
    aside = set_aside_bytes(of_steps, gpus_per_node, on_node=on_node, nvlink=nvlink, apart=apart)
    each = [
        memory_of(
            net, grid, video, (rows, layout), gpus_per_node=gpus_per_node, placement=placement,
            element_bytes=element_bytes, t5_parts=layout.tp if engine is Engine.colossalai else 0, set_aside=aside,
            overlap=overlap,
        )
        for rows, layout in layouts
    ]  # fmt: skip
    return Memory(**{name: max(getattr(memory, name) for memory in each) for name in vars(each[0])})


def _text_gib(net: Network, t5_parts: int) -> float:
    if not t5_parts:
        return TEXT_WINDOW * net.text_gib
    return TEXT_WHOLE_GIB + (net.text_gib - TEXT_WHOLE_GIB) / t5_parts


@dataclass(frozen=True)
class Weights:
    """Bytes of the transformer on a GPU: what stays there, and buffers that exist only during denoising."""

    held: float
    buffers: float


def resident_weights(
    net: Network, layout: Layout, gpus_per_node: int, placement: Placement, element_bytes: int
) -> Weights:
    """Count the weights on the busiest GPU, as `parallel/` keeps them.

    The ends are whole. Blocks are whole, in shares or in host memory with two in transit; or each is divided (tp).
    """
    whole, blocks = weight_bytes(net, element_bytes), blocks_bytes(net, element_bytes)
    if not placement.streamed:
        heads = 4.0 * net.hidden * net.attention_width * (net.blocks + net.two_streams) * element_bytes
        cut = blocks * (1 - 1 / layout.tp) - heads * (uneven(net.heads, layout.tp) - 1) / layout.tp
        return Weights(net.networks * (whole - cut), 0.0)
    ends = whole - blocks
    fp8, offloaded = placement.storage is Storage.fp8, placement.offload is Offload.host
    packed = FP8_BYTES / element_bytes if fp8 else 1.0
    shared_by = _shared_by(placement, layout, gpus_per_node)
    sizes = block_sizes(net, element_bytes)
    stay = sum(size for size, stays in zip(sizes, staying(net.blocks, placement), strict=True) if stays)
    largest = block_weight_bytes(net, element_bytes)
    coming = 2 * largest * packed if offloaded or shared_by > 1 else 0.0
    staging = coming / shared_by if offloaded and shared_by > 1 else 0.0
    shares = 0.0 if offloaded else (blocks - stay) * packed / shared_by
    held = ends + stay * packed + shares
    return Weights(net.networks * held, coming + staging + (largest if fp8 else 0.0))


def decode_bytes(net: Network, video: VideoSize, layout: Layout, element_bytes: int) -> float:
    """Count the bytes for decoding a tile, with this package's decoders or with the model's own."""
    if net.vae == "hunyuan":
        return tile_bytes(video, element_bytes) + finished_bytes(video, layout, element_bytes)
    if net.vae == "dcae":
        work = VAES[net.vae].work_bytes(video.tile_area, video.num_frames, element_bytes)
        return work + finished_bytes(video, layout, element_bytes)
    return VAES[net.vae].live_bytes(video.tile_area, video.num_frames, element_bytes)


def tile_bytes(video: VideoSize, element_bytes: int) -> float:
    """Count the bytes of the causal VAE's decoder for one tile."""
    unit = VAE_CHANNELS * video.tile_pixels
    work = float(VAE_TILE_UNITS * unit * element_bytes)
    return work + min(VAE_CHUNK_NUMBERS, 2 * unit) * VAE_CHUNK_COPIES * element_bytes


def finished_bytes(video: VideoSize, layout: Layout, element_bytes: int) -> float:
    """Count the bytes of this rank's finished tiles, which wait for the rank that blends."""
    ranks = layout.cfg * layout.sequence * layout.tp
    waiting = busiest_pixels(video, ranks) if ranks > 1 else video.tile_pixels
    return 3.0 * element_bytes * max(waiting, video.tile_pixels)


def _host_bytes(net: Network, layout: Layout, gpus_per_node: int, placement: Placement, element_bytes: int) -> float:
    """Count a node's host memory, with one copy of the offloaded blocks per group of ranks with the same videos."""
    host = float(gpus_per_node * RANK_HOST_BYTES)
    if placement.offload is Offload.host:
        packed = FP8_BYTES / element_bytes if placement.storage is Storage.fp8 else 1.0
        sizes = zip(block_sizes(net, element_bytes), staying(net.blocks, placement), strict=True)
        groups = max(1.0, gpus_per_node / (layout.cfg * layout.sequence))
        host += sum(size for size, stays in sizes if not stays) * packed * groups * net.networks
    return host


def blocks_bytes(net: Network, element_bytes: float) -> float:
    """Count the bytes of all blocks, which can be sharded or offloaded. The ends are 1% of that."""
    return sum(block_sizes(net, element_bytes))


@cache
def block_sizes(net: Network, element_bytes: float) -> tuple[float, ...]:
    """Count the bytes of each block, scaled down if the published model has fewer parameters than these blocks."""
    sizes = block_weights(net)
    scale = min(1.0, weight_bytes(net, 1) / sum(sizes)) * element_bytes
    return tuple(size * scale for size in sizes)


def _shared_by(placement: Placement, layout: Layout, gpus_per_node: int) -> int:
    """Return the number of ranks that share the weights: of a node, or of a video."""
    ranks = layout.cfg * layout.sequence
    return {Shard.none: 1, Shard.node: min(ranks, gpus_per_node), Shard.all: ranks}[placement.shard]
