"""What NVML says of the first GPU, without a CUDA context."""

from opensora_launch.machine.nvml import open_gpus


def driver() -> tuple[str | None, str | None]:
    """Return the driver's version, or why NVML shows no GPU."""
    gpus, why_not = open_gpus()
    if gpus is None:
        return None, why_not
    gpus.close()
    return gpus.driver, None


def used_bytes() -> int | None:
    """Return the bytes in use; None where NVML does not tell."""
    gpus, _ = open_gpus()
    if gpus is None:
        return None
    try:
        found = gpus.sample()[0].get("memory_used_bytes") if gpus.gpus else None
        return None if found is None else int(found)
    finally:
        gpus.close()


def total_bytes() -> int | None:
    """Return the size of its memory; None where NVML does not tell."""
    gpus, _ = open_gpus()
    if gpus is None:
        return None
    try:
        found = gpus.gpus[0].facts().get("memory_bytes") if gpus.gpus else None
        return None if found is None else int(found)
    finally:
        gpus.close()
