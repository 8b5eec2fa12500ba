"""Which kernels compute: the attention kernel, and whether the rest of the blocks is compiled."""

from enum import StrEnum


class AttentionKind(StrEnum):
    """Kernels that compute softmax(q k^T) v; `auto` takes the fastest one that supports the GPU, dtype and shape."""

    auto = "auto"
    flash4 = "flash4"
    flash3 = "flash3"
    flash2 = "flash2"
    cudnn = "cudnn"
    sdpa_flash = "sdpa_flash"
    xformers = "xformers"
    cpu_flash = "cpu_flash"
    reference = "reference"


class Compile(StrEnum):
    """Whether torch.compile makes the kernels of the transformer's blocks, but for attention and exchange."""

    auto = "auto"  # on GPUs, where it saves more time than it takes, if a compiler is there
    on = "on"
    off = "off"
