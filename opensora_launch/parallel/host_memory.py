"""Host memory of exactly the asked size, pinned, so that copies from it to the GPU run beside computing.

torch's own pinned memory is rounded up to a power of two (38 GiB instead of 22), and kept after use (pytorch#150517).
"""

import mmap
from weakref import finalize

import torch
from jaxtyping import UInt8
from torch import Tensor

from opensora_launch.errors import UserError


def host_memory(nbytes: int, device: torch.device) -> UInt8[Tensor, "nbytes"]:
    """Return zeros in host memory, pinned if the device is a GPU. It is given back with the last view of it."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pin(memory, device)
    return torch.frombuffer(memory, dtype=torch.uint8)


def pin(memory: mmap.mmap, device: torch.device) -> None:
    """Pin mapped memory until it is freed. Does nothing if the device is a CPU. Raises UserError if CUDA refuses."""
    if device.type != "cuda":
        return
    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    if status := int(torch.cuda.cudart().cudaHostRegister(address, len(memory), 0)):
        raise UserError(
            f"{len(memory) / 2**30:.1f} GiB of host memory cannot be pinned (cudaError {status}): free memory on this "
            f"host, or allow more of it to be locked (ulimit -l; docker: --ulimit memlock=-1)"
        )
    finalize(memory, _unpin, address).atexit = False  # at exit, the driver does it


def free_caches(device: torch.device) -> None:
    """Give back what torch keeps of freed memory: on the GPU, and the pinned memory through which files were read."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        # It has a public name since torch 2.12 (pytorch#134332).
        empty_host_cache = getattr(torch.accelerator, "empty_host_cache", None) or torch._C._host_emptyCache
        empty_host_cache()


def _unpin(address: int) -> None:
    torch.cuda.synchronize()  # copies from it, to memory that is freed with it, may be on their way
    torch.cuda.cudart().cudaHostUnregister(address)
