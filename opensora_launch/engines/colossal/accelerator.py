"""Set the device that ColossalAI works on."""

import torch
from colossalai.accelerator import CpuAccelerator, set_accelerator


class SeededCpu(CpuAccelerator):  # type: ignore[misc]
    """ColossalAI's CPU with random generator methods that its layers call and that 0.5.0 lacks."""

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)


def use_device(device: torch.device) -> None:
    """Let ColossalAI work on a CPU, or on the current GPU, which the rank has set."""
    set_accelerator("cuda" if device.type == "cuda" else SeededCpu())
