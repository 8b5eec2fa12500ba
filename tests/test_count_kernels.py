"""scripts/count_kernels counts what the code of a block says, and docs/performance.md shows what it counts."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from opensora_launch.plan.costs import elementwise_bytes
from opensora_launch.plan.networks import network_of
from opensora_launch.schema.config import MmditConfig, ModelConfig
from tests.script_module import script_module
from tests.test_benchmarks import ROOT

SMALL = MmditConfig(hidden_size=64, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[8, 12, 12])
TOKENS, TEXT = 200, 40


def test_a_double_block_launches_what_its_code_says():
    """Two streams: modulation, 3 projections, norms and rotation of q and k, projection and feed-forward; no chunks."""
    count_forward = script_module("count_kernels").count_forward
    one, two = (count_forward(replace(SMALL, depth=depth), TOKENS, TEXT) for depth in (1, 2))
    assert two.kernels - one.kernels == Counter(
        addmm=14, silu=2, native_layer_norm=4, addcmul=8, gelu=2, pow=4, mean=4, add_=4, rsqrt=4, mul=12, add=4,
        _to_copy=8, roll=4, addcmul_=4, copy_=8, attention=1,
    )  # fmt: skip
    wide = int(SMALL.hidden_size * SMALL.mlp_ratio)
    moved = two.nbytes - one.nbytes
    assert moved["gelu"] == 2 * 2 * TOKENS * wide, "each number is read and written, in 2 bytes"
    assert moved["attention"] == 4 * 2 * TOKENS * SMALL.hidden_size
    activation = TOKENS * SMALL.hidden_size * 2
    assert moved["copy_"] == (2 * (2 + 1) + 2 + 2) * activation, "q and k from fp32, v, and the finished tokens"
    norms = 2 * (2 + 2) * TOKENS * SMALL.hidden_size + 2 * 2 * 4 * TOKENS
    assert moved["native_layer_norm"] == norms, "it also writes mean and deviation of each token"


def test_the_page_says_what_is_counted():
    """At 256px, which is the faster one to count."""
    counting = script_module("count_kernels")
    size, tokens = [*counting.SIZES.items()][1]
    page = (ROOT / "docs" / "performance.md").read_text()
    assert counting.section(size, tokens, counting.count_deep(MmditConfig(), tokens)) in page


def test_blocks_of_a_kind_add_up():
    counting = script_module("count_kernels")
    cfg = replace(SMALL, depth=3, depth_single_blocks=5)
    deep, whole = counting.count_deep(cfg, 700), counting.count_forward(cfg, 700)
    assert (deep.kernels, deep.nbytes) == (whole.kernels, whole.nbytes)


def test_compiled_blocks_meet_the_aim():
    """A quarter of the bytes of eager blocks before this count, and a third of the kernels; the page shows them."""
    counting = script_module("count_kernels")
    page = (ROOT / "docs" / "performance.md").read_text()
    kernels = {
        name: counting.Kernels(int(products), int(others), float(sizes) * 2 * 3072)
        for name, products, others, sizes in re.findall(r"^\| `([\w ]+)` \| (\d) \| (\d) \| ([\d.]+) \|$", page, re.M)
    }
    assert len(kernels) == 4
    every, _, nbytes = counting.count_compiled(MmditConfig(), 76_544, kernels)
    assert every <= 28_968 / 3
    assert nbytes <= 0.8e12
    net = network_of(ModelConfig())
    assert elementwise_bytes(net, 76_544, compiled=True) == pytest.approx(nbytes, rel=0.03)
    eager = counting.count_deep(MmditConfig(), 76_544).elsewhere()[1]
    assert elementwise_bytes(net, 76_544) == pytest.approx(eager, rel=0.03)
