"""scripts/count_kernels counts what the code of a block says, and docs/performance.md shows what it counts."""

from collections import Counter
from dataclasses import replace

from opensora_launch.schema.config import MmditConfig
from tests.test_benchmarks import ROOT, script

SMALL = MmditConfig(hidden_size=64, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[8, 12, 12])
TOKENS, TEXT = 200, 40


def test_a_double_block_launches_what_its_code_says(monkeypatch):
    """Two streams: modulation, 3 projections, norms and rotation of q and k, projection and feed-forward; no chunks."""
    count_forward = script(monkeypatch, "count_kernels").count_forward
    one, two = (count_forward(replace(SMALL, depth=depth), TOKENS, TEXT) for depth in (1, 2))
    assert two.kernels - one.kernels == Counter(
        addmm=14, silu=2, native_layer_norm=4, addcmul=8, gelu=2, pow=4, mean=4, rsqrt=4, sub=4, mul=24, add=12,
        cat=7, _to_copy=16, attention=1,
    )  # fmt: skip
    wide = int(SMALL.hidden_size * SMALL.mlp_ratio)
    moved = two.nbytes - one.nbytes
    assert moved["gelu"] == 2 * 2 * TOKENS * wide, "each number is read and written, in 2 bytes"
    assert moved["attention"] == 4 * 2 * TOKENS * SMALL.hidden_size
    assert moved["cat"] == 2 * 2 * 3 * TOKENS * SMALL.hidden_size + 2 * 4 * 2 * TOKENS * SMALL.hidden_size
    norms = 2 * (2 + 2) * TOKENS * SMALL.hidden_size + 2 * 2 * 4 * TOKENS
    assert moved["native_layer_norm"] == norms, "it also writes mean and deviation of each token"


def test_the_page_says_what_is_counted(monkeypatch):
    """At 256px, which is the faster one to count."""
    counting = script(monkeypatch, "count_kernels")
    size, tokens = [*counting.SIZES.items()][1]
    page = (ROOT / "docs" / "performance.md").read_text()
    assert counting.section(size, tokens, counting.count_deep(MmditConfig(), tokens)) in page


def test_blocks_of_a_kind_add_up(monkeypatch):
    counting = script(monkeypatch, "count_kernels")
    cfg = replace(SMALL, depth=3, depth_single_blocks=5)
    deep, whole = counting.count_deep(cfg, 700), counting.count_forward(cfg, 700)
    assert (deep.kernels, deep.nbytes) == (whole.kernels, whole.nbytes)
