"""The device that ColossalAI works on, told to it."""

import torch
from colossalai.accelerator import CpuAccelerator, set_accelerator


class SeededCpu(CpuAccelerator):  # type: ignore[misc]
    """Its CPU with the generator's methods that its layers call, and that it has not (0.5.0)."""

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)


def use_device(device: torch.device) -> None:
    """Of a GPU it takes the current one, which the rank has set."""
    set_accelerator("cuda" if device.type == "cuda" else SeededCpu())
