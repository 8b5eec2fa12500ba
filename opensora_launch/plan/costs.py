"""Count what a forward costs: FLOPs, bytes of weights, bytes sent between ranks. Pure arithmetic on a `Network`.

A FLOP is one multiplication or one addition, so the product of (m, k) and (k, n) is 2 m k n, as in torch's
FlopCounterMode. Symbols in the formulas:

    S tokens that attend   V video tokens   T text tokens   L blocks   H hidden   A heads x head size   F feed-forward
    U, R degrees of the ulysses and ring axes   E bytes per element
"""

import math
from dataclasses import dataclass

from opensora_launch.plan.layout import Layout
from opensora_launch.plan.networks import Network, TokenGrid
from opensora_launch.schema.model_constants import TIME_CHANNELS

BF16 = 2  # bytes


@dataclass(frozen=True)
class RowWork:
    """The work of one row in one forward of the whole video, before it is divided among ranks."""

    tokens: int  # tokens that run through the blocks
    matmul_flops: float  # proportional to the tokens
    attention_flops: float  # proportional to their square

    @property
    def flops(self) -> float:
        return self.matmul_flops + self.attention_flops

    @property
    def attention_share(self) -> float:
        return self.attention_flops / self.flops


def sequence_tokens(net: Network, grid: TokenGrid) -> int:
    """Count the tokens that run through the blocks; joint blocks include the text."""
    return grid.video_tokens + (grid.text_tokens if net.joint_blocks else 0)


def row_work(net: Network, grid: TokenGrid) -> RowWork:
    """Count the FLOPs of a row.

    Products: 2 (4 H A + m H F) per token and block, with m matrices in the feed-forward; cross-attention adds 2 * 2 H A
    per video token and per text token. Attention: 4 S^2 A per block (q k^T and the weighted sum of v), and 4 V T A for
    the text of a cross block; S is V/frames or frames if attention is factorised.
    """
    tokens, width = sequence_tokens(net, grid), net.attention_width
    matmul = tokens * net.blocks * (2.0 * net.matrices)
    reads_text = net.cross_blocks + (net.spatial_blocks + net.temporal_blocks) * net.mixes_text
    if grid.text_tokens and reads_text:
        matmul += reads_text * 4.0 * net.hidden * width * (grid.video_tokens + grid.text_tokens)
    matmul += _ends_flops(net, grid)
    full = net.joint_blocks + net.cross_blocks
    attention = 4.0 * width * full * tokens**2
    attention += 4.0 * width * net.spatial_blocks * grid.video_tokens * grid.tokens_per_frame
    attention += 4.0 * width * net.temporal_blocks * grid.video_tokens * grid.latent_frames
    attention += 4.0 * width * reads_text * grid.video_tokens * grid.text_tokens
    return RowWork(tokens, matmul, attention)


def _ends_flops(net: Network, grid: TokenGrid) -> float:
    """Count the FLOPs of input and output projections, and of each block's modulation (one token per row)."""
    ends = 2.0 * net.hidden * (2 * net.tokens_in * grid.video_tokens + net.text_width * grid.text_tokens)
    if net.joint_blocks:
        modulation = 12 * net.two_streams + 3 * (net.joint_blocks - net.two_streams) + 2
        ends += 2.0 * net.hidden**2 * modulation + 2.0 * net.hidden * (TIME_CHANNELS + 2 * net.hidden)
    return ends


def elementwise_bytes(
    net: Network, tokens: int, tp: int = 1, element_bytes: int = BF16, *, compiled: bool = False
) -> float:
    """Count the bytes per row that the kernels between the products read and write (scripts/count_kernels).

    Per token and block, in units of H: norms, modulation and gates on every rank of the tp axis; and for a rank's own
    heads and feed-forward norm and rotation of q and k, copies, and the activation (2 F/H). Eager mode computes norm
    and rotation in several kernels, most of them in fp32.
    """
    every, rotation, copies = (8.7, 8.2, 4.3) if compiled else (13.0, 64.0 * BF16 / element_bytes, 7.7)
    own = uneven(net.heads, tp) * (rotation + copies) * net.hidden + 2.0 * net.feed_forward
    return element_bytes * tokens * net.blocks * (net.hidden * every + own / tp)


def weight_count(net: Network) -> float:
    """Count parameters: the published number, else the matrices of the blocks.

    A joint block with two streams has its weights twice, and a modulation of 12 H^2; one with a single stream 3 H^2.
    """
    if net.parameters is not None:
        return net.parameters
    modulation = (12 * net.two_streams + 3 * (net.blocks - net.two_streams)) * net.hidden**2
    return float(net.matrices * (net.blocks + net.two_streams) + modulation)


def weight_bytes(net: Network, element_bytes: float = BF16) -> float:
    return weight_count(net) * element_bytes


def block_weight_bytes(net: Network, element_bytes: float = BF16) -> float:
    """Count the bytes of the largest block, which is gathered ahead of use if weights are sharded."""
    return max(block_weights(net)) * element_bytes


def block_weights(net: Network) -> list[float]:
    """Count the weights of each block in order of use; blocks with separate weights for the text come first."""
    double = 2.0 * net.matrices + 12 * net.hidden**2
    single = float(net.matrices + (3 * net.hidden**2 if net.joint_blocks else 0))
    return [double] * net.two_streams + [single] * (net.blocks - net.two_streams)


def merge_bytes(net: Network, grid: TokenGrid, layout: Layout) -> float:
    """Count the bytes per row that a rank reads and writes to add up a ring's results: fp32, 20 per element and hop."""
    hops = layout.ring if layout.ring > 1 else 0
    full = net.joint_blocks + net.cross_blocks
    return 20.0 * sequence_tokens(net, grid) / layout.sequence * net.attention_width / layout.tp * hops * full


@dataclass(frozen=True)
class Traffic:
    """The bytes and calls with which one rank sends in one forward of one row, by axis."""

    ulysses_bytes: float
    ring_bytes: float
    ulysses_calls: int
    ring_calls: int


def row_traffic(net: Network, grid: TokenGrid, layout: Layout, element_bytes: float = BF16) -> Traffic:
    """Count the traffic of a row.

    Ulysses exchanges q, k, v for heads, and the output back: 4 S/(U R) A E (U-1)/U per block. A ring passes k and v of
    its heads on R-1 times: 2 S/R A/U E (R-1) per block (Jacobs et al. 2023; Liu et al. 2023; Fang and Zhao 2024). A is
    the rank's tp share. Blocks with factorised attention redistribute their input and output instead, H wide.
    """
    tokens, width = sequence_tokens(net, grid), net.attention_width / layout.tp
    share = tokens / layout.sequence * element_bytes
    full = net.joint_blocks + net.cross_blocks
    factored = net.spatial_blocks + net.temporal_blocks
    around = (layout.ulysses - 1) / layout.ulysses
    ulysses = share * around * (4.0 * width * full + 2.0 * net.hidden * factored)
    ring = 2.0 * width * share * (layout.ring - 1) * full
    split = layout.ulysses > 1
    return Traffic(ulysses, ring, split * (2 * full + 2 * factored), (layout.ring - 1) * full)


def tensor_parallel_bytes(net: Network, grid: TokenGrid, degree: int, element_bytes: float = BF16) -> float:
    """Count the bytes per row that a rank of the tp axis sends.

    Each block has an all-reduce of S H for the attention and one for the feed-forward; a rank sends 2 (N-1)/N of each
    (Shoeybi et al. 2019). If both run side by side, as in Flux's single blocks, one all-reduce serves both.
    """
    side_by_side = net.joint_blocks - net.two_streams if net.two_streams else 0
    reductions = 2 * net.blocks - side_by_side
    return 2.0 * reductions * sequence_tokens(net, grid) * net.hidden * element_bytes * (degree - 1) / degree


def tensor_parallel_calls(net: Network, pieces: int = 1) -> int:
    """Count the collectives of a forward whose tokens are processed in `pieces`.

    They are the all-reduces, in blocks with two streams one per stream (the text is one piece), and an all-gather of
    each modulation (a few KB).
    """
    if not net.joint_blocks:
        return 2 * net.blocks * pieces
    single = net.joint_blocks - net.two_streams
    sums = 2 * net.two_streams * (1 + pieces) + (1 if net.two_streams else 2) * single * pieces
    return sums + 2 * net.two_streams + single


def uneven_products(net: Network, tp: int) -> float:
    """Return the busiest rank's products over an even share if weights are divided: only heads may divide unevenly."""
    heads, rest = 4.0 * net.attention_width, float(net.feed_forward_matrices * net.feed_forward)
    return (heads * uneven(net.heads, tp) + rest) / (heads + rest)


def latent_bytes(net: Network, grid: TokenGrid) -> float:
    """Count the bytes of a row's prediction in fp32, which ranks gather once per step."""
    return 4.0 * grid.video_tokens * net.tokens_in


def uneven(things: int, ranks: int) -> float:
    """Return the busiest rank's share of `things` divided among `ranks`, over an even share; at least 1."""
    return math.ceil(things / ranks) * ranks / things
