"""Sharded attention equals plain attention for any number of ranks, tokens and heads."""

from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.parallel.mesh import Groups, Mesh, build_meshes
from opensora_launch.parallel.sequence_attention import merge, ring_attention, sharded_attention
from opensora_launch.parallel.split import TokenShare
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.rank_sets import coordinates, ranks_along
from opensora_launch.schema.even_shares import share_sizes, share_slices
from tests.ranks import run_ranks

B, D = 2, 8


def unrecorded(axis, ranks, nbytes):
    return nullcontext()


def mesh_of(layout: Layout) -> Mesh:
    return build_meshes([layout], dist.get_rank(), Groups(timedelta(seconds=30)), unrecorded)[layout]


def qkv(tokens: int, heads: int) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(0)
    return tuple(torch.randn(B, tokens, heads, D, generator=rng, dtype=torch.float64) for _ in range(3))


def kernel(dtype: torch.dtype):
    return choose_kernel("cpu_flash", device=torch.device("cpu"), dtype=dtype, head_dim=D).call


def attention_on_rank(layout: Layout, tokens: int, heads: int, overlap: bool) -> torch.Tensor:
    mesh = mesh_of(layout)
    mine = share_slices(tokens, layout.sequence)[mesh.sequence_index]
    attend = sharded_attention(mesh, 3, tokens, kernel(torch.float64), overlap=overlap)
    return attend(*(x[:, mine] for x in qkv(tokens, heads)))


QUICK = [*(Layout(ulysses=n) for n in (1, 2, 3)), *(Layout(ring=n) for n in (2, 3)), Layout(ring=2, ulysses=2)]
OTHERS = [
    *(Layout(ulysses=n) for n in (4, 5, 7)),
    *(Layout(ring=n) for n in (4, 5, 7)),
    Layout(ring=2, ulysses=3),
    Layout(ring=3, ulysses=2),
    Layout(ring=2, ulysses=4),
]
LAYOUTS = [*QUICK, *(pytest.param(layout, marks=pytest.mark.slow) for layout in OTHERS)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "overlap"),
    [(23, 6, False), (9, 4, False), (23, 6, True)],
    ids=["23 tokens 6 heads", "9 tokens 4 heads", "overlapped"],
)
def test_equals_one_device(layout, tokens, heads, overlap, tmp_path):
    """Neither the tokens nor the heads divide, and on 7 ranks some have no head at all."""
    got = torch.cat(run_ranks(layout.ranks, tmp_path, attention_on_rank, layout, tokens, heads, overlap), dim=1)
    q, k, v = (x.transpose(1, 2) for x in qkv(tokens, heads))
    want = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def ring_in_bf16() -> torch.Tensor:
    mesh = mesh_of(Layout(ring=4))
    tokens, heads = 256, 2
    mine = share_slices(tokens, 4)[mesh.ring.index]
    q, k, v = (x[:, mine].bfloat16() for x in qkv(tokens, heads))
    return ring_attention(q, k, v, share_sizes(tokens, 4), mesh.ring, kernel(torch.bfloat16))


def merged_in_bf16(q, k, v) -> torch.Tensor:
    """What the reference does: the running output is rounded to bf16 after every hop."""
    running = None
    for part in share_slices(256, 4):
        running = merge(running, *kernel(torch.bfloat16)(q, k[:, part], v[:, part]))
        running = (running[0].bfloat16().float(), running[1])
    assert running is not None
    return running[0]


def test_a_bf16_ring_keeps_its_running_result_in_fp32(tmp_path):
    got = torch.cat(run_ranks(4, tmp_path, ring_in_bf16), dim=1).double()
    low = [x.bfloat16() for x in qkv(256, 2)]
    q, k, v = (x.double().transpose(1, 2) for x in low)
    exact = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    error, rounded = ((x.double() - exact).abs().mean() for x in (got, merged_in_bf16(*low)))
    assert error < 0.9 * rounded, f"{error:.2e} against {rounded:.2e}"


def test_merging_blocks_is_softmax_over_their_union():
    q, k, v = qkv(12, 3)
    merged = None
    for part in share_slices(12, 5):
        merged = merge(merged, *kernel(torch.float64)(q, k[:, part], v[:, part]))
    want, lse = kernel(torch.float64)(q, k, v)
    assert merged is not None
    torch.testing.assert_close(merged[0], want, rtol=0, atol=1e-12)
    torch.testing.assert_close(merged[1], lse, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("total", "ranks"), [(117, 2), (5, 7), (76544, 8), (12, 12)])
def test_shares_differ_by_at_most_one_and_leave_nothing_out(total, ranks):
    sizes = share_sizes(total, ranks)
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 1
    covered = [i for s in share_slices(total, ranks) for i in range(s.start, s.stop)]
    assert covered == list(range(total))


def test_text_comes_before_video_in_a_share():
    shares = [TokenShare.of(5, 12, index, 4) for index in range(4)]  # 3 tokens each, 5 of text
    assert [(s.text, s.video) for s in shares] == [
        (slice(0, 3), slice(0, 0)),
        (slice(3, 5), slice(0, 1)),
        (slice(5, 5), slice(1, 4)),
        (slice(5, 5), slice(4, 7)),
    ]


def test_ulysses_neighbours_are_neighbouring_ranks():
    layout = Layout(dp=2, cfg=2, ring=2, ulysses=2)
    assert coordinates(layout, 13) == {"dp": 1, "cfg": 1, "ring": 0, "ulysses": 1, "tp": 0}
    assert ranks_along(layout, 13, ("ulysses",)) == (12, 13)
    assert ranks_along(layout, 13, ("ring",)) == (13, 15)
    assert ranks_along(layout, 13, ("cfg",)) == (9, 13)
    assert ranks_along(layout, 13, ("cfg", "ring", "ulysses")) == tuple(range(8, 16))
    assert ranks_along(Layout(cfg=2, ulysses=2, tp=2), 5, ("tp",)) == (4, 5)
    assert ranks_along(Layout(cfg=2, ulysses=2, tp=2), 5, ("ulysses",)) == (5, 7)
