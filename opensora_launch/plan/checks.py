"""Why a request has no plan, as far as its settings alone show. Pure."""

from opensora_launch.config import LauncherConfig, MmditConfig, SamplingConfig
from opensora_launch.errors import must_be_one_of


def sampling_problems(sampling: SamplingConfig) -> list[str]:
    """What is wrong with counts, names and the seed."""
    counts = {name: getattr(sampling, name) for name in ("num_steps", "num_samples", "batch_size")}
    problems = [
        f"sampling.{name}={count} must be at least 1"
        for name, count in counts.items()
        if count is not None and count < 1
    ]
    problems += must_be_one_of("sampling.noise_device", sampling.noise_device, ("cpu", "cuda"))
    problems += must_be_one_of("sampling.state_dtype", sampling.state_dtype, ("fp32", "bf16"))
    if sampling.flow_shift is not None and sampling.flow_shift <= 0:
        problems.append(f"sampling.flow_shift={sampling.flow_shift} must be more than 0, or null for the model's own")
    if sampling.seed is not None and not 0 <= sampling.seed < 2**63:
        problems.append(f"sampling.seed={sampling.seed} must be between 0 and 2^63 - 1, or null for a random one")
    return problems


def model_problems(mmdit: MmditConfig) -> list[str]:
    """What is wrong with the sizes of heads and axes."""
    if mmdit.hidden_size % mmdit.num_heads:
        return [f"model.mmdit.hidden_size={mmdit.hidden_size} is not a multiple of num_heads={mmdit.num_heads}"]
    head_dim = mmdit.hidden_size // mmdit.num_heads
    if sum(mmdit.axes_dim) != head_dim:
        return [f"model.mmdit.axes_dim={mmdit.axes_dim} must add up to the head size {head_dim}"]
    return []


def launcher_problems(launcher: LauncherConfig) -> list[str]:
    """What is wrong with threads, checkpoints and the time limit."""
    problems = list[str]()
    threads = launcher.threads_per_rank
    if threads is not None and threads < 1:
        problems.append(f"launcher.threads_per_rank={threads} must be at least 1, or null to be chosen")
    if (launcher.checkpoint_every_steps or 0) < 0:
        problems.append("launcher.checkpoint_every_steps must be at least 1, 0 for never, or null to be chosen")
    if launcher.timeout_s <= 0:
        problems.append(f"launcher.timeout_s={launcher.timeout_s} must be more than 0 seconds")
    return problems
