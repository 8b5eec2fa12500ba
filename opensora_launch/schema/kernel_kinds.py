"""Which kernels compute: the attention kernel, whether the rest is compiled, and whether exchanges overlap with it."""

from enum import StrEnum

# Kernels that compute softmax(q k^T) v; `auto` takes the fastest one that supports the GPU, dtype and shape.
AttentionKind = StrEnum(
    "AttentionKind",
    ["auto", "flash4", "flash3", "flash2", "cudnn", "sdpa_flash", "xformers", "cpu_flash", "reference"],
)


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
