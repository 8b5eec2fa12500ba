"""How torch computes on this rank. What only needs torch starts without the rest of the worker, as scripts do."""

import torch

from opensora_launch.schema.config import NumericsConfig


def set_numerics(threads: int, numerics: NumericsConfig) -> None:
    """Let equal inputs give equal bits: fixed thread count, no kernels chosen by timing, products as configured."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = numerics.tf32
    torch.backends.cudnn.allow_tf32 = numerics.tf32
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = numerics.reduced_sums
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = numerics.reduced_sums
    torch.set_grad_enabled(False)
