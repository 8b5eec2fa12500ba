"""Count the memory of a GPU that PyTorch's allocator does not manage: CUDA, its libraries, and NCCL. Pure.

The numbers of NCCL are published for A100 and H100 with NVLink; the worker measures its own after warm-up.
"""

from functools import cache

from opensora_launch.plan.layout import Layout
from opensora_launch.plan.rank_sets import device_sets

MIB = 2.0**20
RESERVED_BYTES = 1.2 * 1024 * MIB  # of any rank: CUDA context, kernels, workspaces of cuBLAS and cuDNN
LATER_BYTES = 0.5 * 1024 * MIB  # of these, what comes with the first kernels: assumed
PAIR_BYTES, GROUP_BYTES = 544 * MIB, 688 * MIB  # of a communicator of two ranks, and of more, with NVLink
DIRECT_BYTES = (4.34e9 - 1.06e9) / 7  # for each rank that this one sends to directly, with NVLink
CHANNELS, DIRECT_CHANNELS = 8 / 24, 2 / 32  # of those over NVLink, without it


@cache
def set_aside_bytes(
    layouts: tuple[Layout, ...], gpus_per_node: int, *, on_node: bool, nvlink: bool, apart: bool = False
) -> float:
    """Return the bytes to set aside on each GPU of a run. Layouts, `on_node` and `apart` are those of `device_sets`.

    Each distinct set of ranks that exchanges tensors of the device has a communicator: 544 MiB with two ranks and
    688 MiB with more (4 A100 with NVLink, https://github.com/NVIDIA/nccl/issues/964). Ranks that send to each other
    directly, as in an all-to-all, also have buffers for each other: a process grew from 1.06 to 4.34 GB by 7 others
    (8 H100 with NVLink, 32 channels per pair, https://github.com/NVIDIA/nccl/issues/1685). Memory is linear in the
    number of channels (https://github.com/NVIDIA/nccl/issues/986). NCCL has about 24 on A100; without NVLink and to
    other nodes it has 8, and 2 per pair (https://github.com/NVIDIA/nccl/issues/1189). All ranks are counted like the
    first.
    """
    total, few = RESERVED_BYTES, DIRECT_BYTES * DIRECT_CHANNELS
    for ranks, uses in device_sets(layouts, 0, gpus_per_node, on_node=on_node, apart=apart).items():
        near = min(uses.direct, gpus_per_node - 1)
        total += (GROUP_BYTES if len(ranks) > 2 else PAIR_BYTES) * (1 if nvlink else CHANNELS) * (1 + uses.apart)
        total += near * (DIRECT_BYTES if nvlink else few) + (uses.direct - near) * few
    return total
