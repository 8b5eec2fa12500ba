"""The environment of the ranks: the part of the schema under `env`."""

from opensora_launch.schema.settings import key, settings


@settings
class EnvConfig:
    """The ranks' environment."""

    profile: str = key("workstation", "name of the profile, in reports")
    set: list[str] = key(
        ["PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True", "NCCL_DEBUG=WARN"], "values for variables that are not set"
    )
    unset: list[str] = key([
        "CUDA_LAUNCH_BLOCKING", "PYTORCH_NO_CUDA_MEMORY_CACHING", "CUDA_MEMORY_FRACTION", "NCCL_BLOCKING_WAIT",
        "TORCH_NCCL_BLOCKING_WAIT",
    ], "variables to remove")  # fmt: skip
