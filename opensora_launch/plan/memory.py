"""Bytes that a run needs, by phase: on the busiest GPU, in a node's host memory, and read from disk.

Peaks of activations are counted from the code of the blocks: the tensors that are alive at the same time, in units of
one activation U = rows x share of the tokens x H x E. Tests hold them to what an allocator sees.
"""

import math
from dataclasses import dataclass
from functools import cache

from opensora_launch.plan.costs import block_weight_bytes, uneven, weight_bytes
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.networks import Network, Shape
from opensora_launch.plan.placement import Placement, staying
from opensora_launch.plan.vaes import VAES
from opensora_launch.schema.config import Offload, Shard, Storage

GIB = 2.0**30
USABLE = (
    0.985  # of the memory that NVML tells, what CUDA gives out: 39.4 of 40.0 GiB, 23.6 of 24.0 in PyTorch's messages
)
RESERVED_BYTES = 1.2 * GIB  # CUDA context, NCCL's buffers, cuBLAS and cuDNN workspaces
FRAGMENTS = 1.02  # of what the allocator holds over what is alive
RANK_HOST_BYTES = 3.0 * GIB  # a process with torch and CUDA, embeddings, frames on their way to a file
TOKENS_AT_ONCE = 8192  # rows x tokens that the blocks widen at once (model/mmdit.py)
VAE_TILE_UNITS = 3  # of 128 channels at full size alive in the decoder's last stage
VAE_CHANNELS = 128
VAE_CHUNK_NUMBERS = 2**27  # of a layer's frames at once (model/causal_vae.py)
VAE_CHUNK_COPIES = 7.2 / 2  # of such a chunk: normalised in fp32, rounded, padded
TEXT_WINDOW = 0.14  # of the text encoders: two of T5's 24 layers, its token table, CLIP
FP8_BYTES = 1.002  # of a weight: the scales of the rows are the rest
TEXT_WHOLE_GIB = 0.5  # CLIP and T5's token embedding, which are not cut


@dataclass(frozen=True)
class VideoSize:
    """What the VAE makes; `tile_px` None: in one piece, `tile_frames` None: all frames of a tile at once."""

    width_px: int
    height_px: int
    num_frames: int
    tile_px: int | None
    tile_frames: int | None = None

    @property
    def tiles(self) -> int:
        """Open-Sora's grid: a tile every three quarters of its size (autoencoder_kl_causal_3d.py)."""
        in_time = 1
        if self.tile_frames is not None and self.num_frames > self.tile_frames:
            in_time = math.ceil((self.num_frames - 1) / (self.tile_frames * 3 // 4))
        if self.tile_px is None or max(self.width_px, self.height_px) <= self.tile_px:
            return in_time
        stride = self.tile_px * 3 // 4
        return math.ceil(self.width_px / stride) * math.ceil(self.height_px / stride) * in_time

    @property
    def tile_pixels(self) -> int:
        """Of the largest tile, over all of its frames; one more than asked of those that are cut in time."""
        most = self.tile_px or max(self.width_px, self.height_px)
        frames = min(self.num_frames, self.tile_frames + 1) if self.tile_frames else self.num_frames
        return min(self.width_px, most) * min(self.height_px, most) * frames


@dataclass(frozen=True)
class Memory:
    """Bytes. `text`, `denoise` and `decode` are the peaks of the phases on the busiest GPU."""

    weights: float  # of the transformer, resident on a GPU
    activations: float
    text: float
    denoise: float
    decode: float
    host: float  # of a node
    disk: float  # read by a node

    @property
    def peak(self) -> float:
        return max(self.text, self.denoise, self.decode)


def activation_bytes(
    net: Network, shape: Shape, layout: Layout, rows: int, element_bytes: int, at_once: int = TOKENS_AT_ONCE
) -> float:
    """Peak of one forward of `rows` rows on the busiest rank, over its weights and inputs.

    In units U of one activation, with m = F/H, the share c of the tokens that is widened at once, and the rank's part p
    of the heads and the feed-forward (1 where weights are whole, about 1/tp where they are cut):

    projecting   x, the normed, the q, k, v so far and one part's, rotated in fp32: 1 + c + (3 (1 - c) + 11.1 c) p (7 c
                 in fp32)
    attending    x, q, k, v and the result: 1 + 4.2 p. Ulysses 1 + 9.1 p (sent, received, put together; 1 p more of
                 several rows). A ring 1 + 11.1 p (two blocks of keys and values on their way, results in fp32), 2 p
                 more past two hops, 3 p more with Ulysses
    finishing    x, the attended, the done and one part's widened twice: 2 + c + (1 + 2 m c) p; or its sum and the
                 second product's: 2 (1 + c) + (1 + m c) p; at the end the done twice: 3 + c + p
    """
    wide = net.feed_forward / net.hidden
    narrow = element_bytes < 4
    tokens = math.ceil((shape.video_tokens + shape.text_tokens) / layout.sequence)
    c, p = min(1.0, at_once / (rows * tokens)), uneven(net.heads, layout.tp) / layout.tp
    heads = 4.2
    if layout.sequence > 1:
        heads = max(heads, 9.1 + (layout.ulysses > 1 and rows > 1))
    if layout.ring > 1:
        both, many = layout.ulysses > 1, layout.ring > 2
        heads = max(heads, 11.1 + 2 * many + 3 * both if narrow else 8.2 + 3.1 * (many + both))
    units = max(
        1 + heads * p,
        1 + c + (3 * (1 - c) + (11.1 if narrow else 7.0) * c) * p,
        2 + c + (1 + 2 * wide * c) * p,
        2 + 2 * c + (1 + wide * c) * p,
        3 + c + p if c < 1 else 0.0,
    )
    table = 4.0 * net.head_dim  # cos and sin of half the channels, fp32
    return rows * tokens * (units * net.hidden * element_bytes + table)


def memory_of(
    net: Network,
    shape: Shape,
    layout: Layout,
    video: VideoSize,
    *,
    rows: int,
    gpus_per_node: int,
    placement: Placement,
    element_bytes: int,
    t5_parts: int = 0,
) -> Memory:
    """`rows` of the step with the most. `text` is what encoding needs: a window of the encoders, or, with ColossalAI,
    T5 in `t5_parts`; where there is room it takes all encoders.
    """
    weights = resident_weights(net, layout, gpus_per_node, placement, element_bytes)
    vae = VAES[net.vae].parameters * element_bytes
    mine = math.ceil(rows / layout.cfg)
    activations = activation_bytes(net, shape, layout, min(mine, placement.rows_at_once or mine), element_bytes)
    latents = 4.0 * shape.video_tokens * net.tokens_in * (3 + 2 * rows)
    return Memory(
        weights=weights.held + weights.buffers,
        activations=activations,
        text=_held(_text_gib(net, t5_parts) * GIB + 0.1 * GIB),
        denoise=_held(weights.held + weights.buffers + vae + activations + latents),
        decode=_held(weights.held + vae + decode_bytes(net, video, layout, element_bytes)),
        host=_host_bytes(net, layout, gpus_per_node, placement, element_bytes),
        disk=weight_bytes(net, element_bytes) + vae + net.text_gib * GIB,
    )


def _text_gib(net: Network, t5_parts: int) -> float:
    if not t5_parts:
        return TEXT_WINDOW * net.text_gib
    return TEXT_WHOLE_GIB + (net.text_gib - TEXT_WHOLE_GIB) / t5_parts


@dataclass(frozen=True)
class Weights:
    """Bytes of the transformer on a GPU: what stays there, and the buffers that are free outside of denoising."""

    held: float
    buffers: float


def resident_weights(
    net: Network, layout: Layout, gpus_per_node: int, placement: Placement, element_bytes: int
) -> Weights:
    """As parallel/placement.py holds them: the ends whole, blocks whole, in shares or elsewhere, two on their way; or a
    part of each (tp), the busiest rank's.
    """
    whole, blocks = weight_bytes(net, element_bytes), blocks_bytes(net, element_bytes)
    if not placement.streamed:
        heads = 4.0 * net.hidden * net.attention_width * (net.blocks + net.two_streams) * element_bytes
        cut = blocks * (1 - 1 / layout.tp) - heads * (uneven(net.heads, layout.tp) - 1) / layout.tp
        return Weights(whole - cut, 0.0)
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
    return Weights(ends + stay * packed + shares, coming + staging + (largest if fp8 else 0.0))


def decode_bytes(net: Network, video: VideoSize, layout: Layout, element_bytes: int) -> float:
    """Of a tile by our decoder where it is the Hunyuan VAE; else as the model's own decodes."""
    if net.vae == "hunyuan":
        return tile_bytes(video, layout, element_bytes)
    side = video.tile_px or max(video.width_px, video.height_px)
    pixels = min(video.width_px, side) * min(video.height_px, side)
    return VAES[net.vae].live_bytes(pixels, video.num_frames, element_bytes)


def tile_bytes(video: VideoSize, layout: Layout, element_bytes: int) -> float:
    """The decoder at work on a tile, and this rank's finished ones on their way to the rank that blends."""
    unit = VAE_CHANNELS * video.tile_pixels
    work = float(VAE_TILE_UNITS * unit * element_bytes)
    work += min(VAE_CHUNK_NUMBERS, 2 * unit) * VAE_CHUNK_COPIES * element_bytes
    ranks = layout.cfg * layout.sequence * layout.tp
    done = 3.0 * video.tile_pixels * element_bytes * (math.ceil(video.tiles / ranks) if ranks > 1 else 1)
    return work + done


def _host_bytes(net: Network, layout: Layout, gpus_per_node: int, placement: Placement, element_bytes: int) -> float:
    """Of a node: one copy of offloaded blocks for its ranks that work on the same videos."""
    host = float(gpus_per_node * RANK_HOST_BYTES)
    if placement.offload is Offload.host:
        packed = FP8_BYTES / element_bytes if placement.storage is Storage.fp8 else 1.0
        sizes = zip(block_sizes(net, element_bytes), staying(net.blocks, placement), strict=True)
        groups = max(1.0, gpus_per_node / (layout.cfg * layout.sequence))
        host += sum(size for size, stays in sizes if not stays) * packed * groups
    return host


def blocks_bytes(net: Network, element_bytes: float) -> float:
    """Of all blocks together: what can be sharded or offloaded. The ends are a hundredth of it."""
    return sum(block_sizes(net, element_bytes))


@cache
def block_sizes(net: Network, element_bytes: float) -> tuple[float, ...]:
    """Bytes of each block in the order of use: those with weights of their own for the text come first.

    Scaled down where a model was published with fewer parameters than its blocks would have.
    """
    matrices = 4 * net.hidden * net.attention_width + net.feed_forward_matrices * net.hidden * net.feed_forward
    double, single = 2.0 * matrices + 12 * net.hidden**2, float(matrices + 3 * net.hidden**2)
    sizes = [double] * net.two_streams + [single if net.joint_blocks else float(matrices)] * (
        net.blocks - net.two_streams
    )
    scale = min(1.0, weight_bytes(net, 1) / sum(sizes)) * element_bytes
    return tuple(size * scale for size in sizes)


def _shared_by(placement: Placement, layout: Layout, gpus_per_node: int) -> int:
    """Ranks of one video that spread its weights: those of a node, or all."""
    ranks = layout.cfg * layout.sequence
    return {Shard.none: 1, Shard.node: min(ranks, gpus_per_node), Shard.all: ranks}[placement.shard]


def _held(alive: float) -> float:
    return alive * FRAGMENTS + RESERVED_BYTES
