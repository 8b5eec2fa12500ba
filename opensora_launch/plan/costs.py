"""What a forward costs, as counts: FLOPs, bytes of weights, bytes that travel. Pure arithmetic on a `Network`.

A FLOP is one multiplication or one addition, so a product of (m, k) and (k, n) is 2 m k n, as torch's FlopCounterMode
counts. Symbols in the formulas:

    S tokens that attend   V video tokens   T text tokens   L blocks   H hidden   A heads x head size   F feed-forward
    U, R degrees of the ulysses and ring axes   E bytes of an element
"""

import math
from dataclasses import dataclass

from opensora_launch.plan.layout import Layout
from opensora_launch.plan.networks import Network, Shape
from opensora_launch.schema.config import TIME_CHANNELS

BF16 = 2  # bytes


@dataclass(frozen=True)
class RowWork:
    """One row of one forward of the whole video, before it is cut."""

    tokens: int  # that run through the blocks
    matmul_flops: float  # that fall with the tokens
    attention_flops: float  # that fall with their square

    @property
    def flops(self) -> float:
        return self.matmul_flops + self.attention_flops

    @property
    def attention_share(self) -> float:
        return self.attention_flops / self.flops


def sequence_tokens(net: Network, shape: Shape) -> int:
    """Tokens that run through the blocks: the text too where blocks are joint."""
    return shape.video_tokens + (shape.text_tokens if net.joint_blocks else 0)


def row_work(net: Network, shape: Shape) -> RowWork:
    """FLOPs of a row.

    Products: 2 (4 H A + m H F) a token and block, m matrices of the feed-forward; cross-attention adds 2 * 2 H A a
    video token and 2 * 2 H A a text token. Attention: 4 S^2 A a block (q k^T and the weighted sum of v), 4 V T A for
    the text of a cross block; S is V/frames or frames where attention is factorised.
    """
    tokens, width = sequence_tokens(net, shape), net.attention_width
    block = 2.0 * (4 * net.hidden * width + net.feed_forward_matrices * net.hidden * net.feed_forward)
    matmul = tokens * net.blocks * block
    reads_text = net.cross_blocks + (net.spatial_blocks + net.temporal_blocks) * net.mixes_text
    if shape.text_tokens and reads_text:
        matmul += reads_text * 4.0 * net.hidden * width * (shape.video_tokens + shape.text_tokens)
    matmul += _ends_flops(net, shape)
    full = net.joint_blocks + net.cross_blocks
    attention = 4.0 * width * full * tokens**2
    attention += 4.0 * width * net.spatial_blocks * shape.video_tokens * shape.tokens_per_frame
    attention += 4.0 * width * net.temporal_blocks * shape.video_tokens * shape.latent_frames
    attention += 4.0 * width * reads_text * shape.video_tokens * shape.text_tokens
    return RowWork(tokens, matmul, attention)


def _ends_flops(net: Network, shape: Shape) -> float:
    """Tokens in and out, the text's projection, and the modulation of each block (one token a row)."""
    ends = 2.0 * net.hidden * (2 * net.tokens_in * shape.video_tokens + net.text_width * shape.text_tokens)
    if net.joint_blocks:
        modulation = 12 * net.two_streams + 3 * (net.joint_blocks - net.two_streams) + 2
        ends += 2.0 * net.hidden**2 * modulation + 2.0 * net.hidden * (TIME_CHANNELS + 2 * net.hidden)
    return ends


def elementwise_bytes(net: Network, tokens: int, tp: int = 1) -> float:
    """Bytes that the kernels between the products read and write in eager mode, bf16, per row.

    Per token and block, in units of H: two norms with modulation (8 each) and two gated additions (3 each), on every
    rank of the tp axis; norm and rotation of q and k (4 reads or writes of fp32 and bf16 each, 24 in all), the
    activation (2 F/H) and copies (6), of a rank's own heads and feed-forward.
    """
    own = uneven(net.heads, tp) * 30 * net.hidden + 2.0 * net.feed_forward
    return BF16 * tokens * net.blocks * (net.hidden * 22 + own / tp)


def weight_count(net: Network) -> float:
    """Parameters: as published, else the blocks' matrices and biases.

    A joint block of two streams has its weights twice, and 12 H^2 of modulation; one of a single stream 3 H^2.
    """
    if net.parameters is not None:
        return net.parameters
    width = net.attention_width
    matrices = 4 * net.hidden * width + net.feed_forward_matrices * net.hidden * net.feed_forward
    single = net.blocks - net.two_streams
    modulation = (12 * net.two_streams + 3 * single) * net.hidden**2
    return float(matrices * (net.blocks + net.two_streams) + modulation)


def weight_bytes(net: Network, element_bytes: float = BF16) -> float:
    return weight_count(net) * element_bytes


def block_weight_bytes(net: Network, element_bytes: float = BF16) -> float:
    """Of the largest block: what is gathered ahead of use where weights are sharded."""
    streams = 2 if net.two_streams else 1
    matrices = 4 * net.hidden * net.attention_width + net.feed_forward_matrices * net.hidden * net.feed_forward
    modulation = 12 if net.two_streams else 3
    return float(matrices * streams + (modulation * net.hidden**2 if net.joint_blocks else 0)) * element_bytes


def merge_bytes(net: Network, shape: Shape, layout: Layout) -> float:
    """Read and written by a rank a row to add up the results of a ring's hops, fp32: 20 bytes an element and hop."""
    hops = layout.ring if layout.ring > 1 else 0
    full = net.joint_blocks + net.cross_blocks
    return 20.0 * sequence_tokens(net, shape) / layout.sequence * net.attention_width / layout.tp * hops * full


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in one forward of one row, by axis, and in how many calls."""

    ulysses_bytes: float
    ring_bytes: float
    ulysses_calls: int
    ring_calls: int


def row_traffic(net: Network, shape: Shape, layout: Layout, element_bytes: float = BF16) -> Traffic:
    """Ulysses trades q, k, v for heads and the output back: 4 S/(U R) A E (U-1)/U a block. A ring passes k and v of
    its heads R-1 times: 2 S/R A/U E (R-1) a block (Jacobs et al. 2023; Liu et al. 2023; Fang and Zhao 2024). A is that
    of the rank's tp share.

    Blocks whose attention stays inside a frame or a place trade tokens for places twice: x in and out, H wide.
    """
    tokens, width = sequence_tokens(net, shape), net.attention_width / layout.tp
    share = tokens / layout.sequence * element_bytes
    full = net.joint_blocks + net.cross_blocks
    factored = net.spatial_blocks + net.temporal_blocks
    around = (layout.ulysses - 1) / layout.ulysses
    ulysses = share * around * (4.0 * width * full + 2.0 * net.hidden * factored)
    ring = 2.0 * width * share * (layout.ring - 1) * full
    split = layout.ulysses > 1
    return Traffic(ulysses, ring, split * (2 * full + 2 * factored), (layout.ring - 1) * full)


def tensor_parallel_bytes(net: Network, shape: Shape, degree: int, element_bytes: float = BF16) -> float:
    """Sent by a rank a row: an all-reduce of S H, 2 (N-1)/N of it, for the attention and one for the feed-forward of
    each block (Shoeybi et al. 2019); one for both where they are side by side, as in Flux's single blocks.
    """
    side_by_side = net.joint_blocks - net.two_streams if net.two_streams else 0
    reductions = 2 * net.blocks - side_by_side
    return 2.0 * reductions * sequence_tokens(net, shape) * net.hidden * element_bytes * (degree - 1) / degree


def tensor_parallel_calls(net: Network, pieces: int = 1) -> int:
    """Collectives of a forward whose tokens come in so many pieces: the all-reduces, in blocks of two streams one a
    stream (the text is one piece), and an all-gather of each modulation (a few KB).
    """
    if not net.joint_blocks:
        return 2 * net.blocks * pieces
    single = net.joint_blocks - net.two_streams
    sums = 2 * net.two_streams * (1 + pieces) + (1 if net.two_streams else 2) * single * pieces
    return sums + 2 * net.two_streams + single


def uneven_products(net: Network, tp: int) -> float:
    """The busiest rank's products where weights are cut, over an even share: heads may not divide, the rest does."""
    heads, rest = 4.0 * net.attention_width, float(net.feed_forward_matrices * net.feed_forward)
    return (heads * uneven(net.heads, tp) + rest) / (heads + rest)


def latent_bytes(net: Network, shape: Shape) -> float:
    """Of a row's prediction, fp32: what the guidance rows and shares gather once a step."""
    return 4.0 * shape.video_tokens * net.tokens_in


def uneven(things: int, ranks: int) -> float:
    """The busiest rank's share of `things` dealt to `ranks`, over an even one; at least 1."""
    return math.ceil(things / ranks) * ranks / things
