"""Attention over whole sequences on one device: the kernels, and the choice among them.

Every kernel is a function (q, k, v) -> (out, lse) with q, k, v of shape B S N D. `lse` is the log-sum-exp of
each query's scores, which partial results of a ring are merged by.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v, each B S N D -> B S N D


def attend_alone(
    q: Float[Tensor, "B S N D"], k: Float[Tensor, "B K N D"], v: Float[Tensor, "B K N D"]
) -> Float[Tensor, "B S N D"]:
    """Attention by torch's own choice of kernel."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
