"""Which kernels compute: the attention kernel, whether the rest is compiled, and whether exchanges overlap with it."""

from enum import StrEnum


class AttentionKind(StrEnum):
    """Which kernel computes softmax(q k^T) v; `auto` takes the fastest exact one that suits GPU, dtype and shape.

    The approximate ones round q and k, and on most GPUs v and the weights, to 8 bits. Their scales come from the tokens
    of one call and one head. So Ulysses, which gives each rank whole sequences of some heads, computes what one GPU
    does. A ring, which gives the kernel one part of the tokens after another, rounds differently.
    """

    auto = "auto"
    flash4 = "flash4"
    flash3 = "flash3"
    flash2 = "flash2"
    cudnn = "cudnn"
    sdpa_flash = "sdpa_flash"
    xformers = "xformers"
    cpu_flash = "cpu_flash"
    reference = "reference"
    sage2 = "sage2"  # approximate: q and k in int8, a scale per 2 to 128 tokens of a head; v in fp8 or fp16
    flash3_fp8 = "flash3_fp8"  # approximate: float8_e4m3, a scale per head of q, of k and of v


APPROXIMATE = frozenset({AttentionKind.sage2, AttentionKind.flash3_fp8})  # they change the video by more than rounding


class Compile(StrEnum):
    """Whether torch.compile makes the kernels of the transformer's blocks, but for attention and exchange."""

    auto = "auto"  # on GPUs, where it saves more time than it takes, if a compiler is there
    on = "on"
    off = "off"


class Overlap(StrEnum):
    """Whether Ulysses exchanges parts of q, k, v and of the result while the blocks compute others."""

    auto = "auto"  # on GPUs, where the plan says that it saves time
    on = "on"
    off = "off"
