"""Why NVIDIA's management library (NVML) or one GPU cannot be used, in words, with what to do. Pure."""

import pynvml

NO_LIBRARY = "the driver's library libnvidia-ml.so.1 is not found"
_CAUSES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NO_LIBRARY,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "NVIDIA's driver is not loaded (load it by modprobe nvidia, or install it again for this kernel)"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the driver's library and its kernel module have different versions (reboot after an update of the driver, and "
        "start containers again)"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "permission denied (request GPUs from Slurm; elsewhere see who may use /dev/nvidia*, by ls -l)"
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: (
        "the driver has lost it, it fell off the bus (reboot; if it is lost again, check power, slot and cooling)"
    ),
    pynvml.NVML_ERROR_RESET_REQUIRED: "it needs a reset (nvidia-smi -r, or a reboot)",
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: "its power cables are not connected (shut down and connect them)",
    pynvml.NVML_ERROR_IRQ_ISSUE: "the kernel has a problem with its interrupts (see dmesg)",
}


def nvml_cause(error: Exception) -> str:
    """Why NVML, or one GPU, cannot be used, and what to do."""
    return _CAUSES.get(getattr(error, "value", None), f"{nvml_text(error)} (nvidia-smi and dmesg tell more)")


def nvml_text(error: Exception) -> str:
    """What NVML says of its own error, or an error of this program."""
    return str(error) if isinstance(error, pynvml.NVMLError) else f"{type(error).__name__}: {error}"
