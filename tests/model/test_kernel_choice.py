"""Every kernel that runs here against plain softmax in fp64, and the choice among all of them."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from opensora_launch.errors import UserError
from opensora_launch.model import kernel_choice, kernels
from opensora_launch.model.kernel_choice import (
    FASTEST,
    Kernel,
    KernelTarget,
    choose_kernel,
    fastest_kernel,
    load_kernel,
    why_not,
)

CPU = torch.device("cpu")
GPU_KINDS = ["flash4", "flash3", "flash2", "cudnn", "sdpa_flash", "sdpa_efficient", "xformers", "reference"]
Want = tuple[tuple[int, int] | None, torch.dtype, int]  # a KernelTarget's fields
# batch, queries, keys, heads, head size
SHAPES = [
    (2, 33, 33, 6, 16),
    (1, 7, 129, 5, 20),
    (1, 130, 3, 1, 128),
    (2, 1, 1, 3, 8),
    (1, 1, 50, 2, 64),
    (1, 50, 1, 2, 24),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> list[Tensor]:
    """Not contiguous: heads first in memory, as after a split of a fused projection."""
    batch, queries, keys, heads, dim = shape
    g = torch.Generator().manual_seed(0)
    lengths = (queries, keys, keys)
    return [torch.randn(batch, heads, s, dim, generator=g).to(device, dtype).transpose(1, 2) for s in lengths]


def plain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """An oracle of its own: fp64, written with einsum, whole."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("bsnd,bknd->bnsk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bnsk,bknd->bsnd", scores.softmax(-1), v), scores.logsumexp(-1)


def check(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor) -> None:
    out, lse = kernel.call(q, k, v)
    want, want_lse = plain(q, k, v)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    assert (out.dtype, out.shape) == (q.dtype, q.shape)
    assert (lse.dtype, lse.shape) == (wide, (q.shape[0], q.shape[2], q.shape[1]))
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5}.get(q.dtype, 2e-2)
    torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=tolerance)
    lse_tolerance = 1e-12 if q.dtype == torch.float64 else 1e-3 if q.is_cuda else 2e-5
    torch.testing.assert_close(lse.double(), want_lse, atol=lse_tolerance, rtol=lse_tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["cpu_flash", "reference"])
def test_cpu_kernels_equal_plain_softmax(kind: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    check(choose_kernel(kind, device=CPU, dtype=dtype, head_dim=shape[-1]), *inputs(shape, dtype))


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operator makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_the_reference_holds_a_bounded_part_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs((2, 33, 330, 6, 16), torch.float64)
    limit = 6 * 2 * 330 * 20  # the scores of 20 queries, so that 13 are left for the last slice
    monkeypatch.setattr(kernels, "SCORES", limit)
    with Largest() as largest:
        out, _ = kernels.reference(q, k, v)
    assert largest.numbers == limit
    torch.testing.assert_close(out, plain(q, k, v)[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["cpu_flash", "reference"])
@pytest.mark.parametrize(("queries", "keys", "heads"), [(3, 0, 2), (0, 3, 2), (0, 0, 2), (3, 4, 0)])
def test_nothing_to_attend_to_gives_zero_and_minus_infinity(kind: str, queries: int, keys: int, heads: int) -> None:
    q, k, v = (torch.randn(2, s, heads, 8, dtype=torch.bfloat16) for s in (queries, keys, keys))
    out, lse = choose_kernel(kind, device=CPU, dtype=q.dtype, head_dim=8).call(q, k, v)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert (lse.shape, lse.dtype) == ((2, heads, queries), torch.float32)
    assert not out.any()
    assert bool((lse == float("-inf")).all())


def test_partial_results_merge_to_the_whole() -> None:
    q, k, v = inputs((1, 9, 20, 3, 16), torch.float64)
    call = choose_kernel("auto", device=CPU, dtype=q.dtype, head_dim=16).call
    parts = [call(q, k[:, part], v[:, part]) for part in (slice(0, 7), slice(7, 7), slice(7, 20))]
    lse = torch.stack([lse for _, lse in parts]).logsumexp(0)
    merged = sum(out * (part - lse).exp().transpose(1, 2)[..., None] for out, part in parts)
    torch.testing.assert_close(merged, plain(q, k, v)[0], atol=1e-12, rtol=1e-12)


def test_the_private_operators_are_the_ones_that_we_call() -> None:
    """Positions of arguments and outputs; another order would give wrong numbers, not an error."""
    wanted = {
        "_scaled_dot_product_flash_attention_for_cpu": (["query", "key", "value"], ["output", "logsumexp"]),
        "_scaled_dot_product_flash_attention": (["query", "key", "value"], ["output", "logsumexp"]),
        "_scaled_dot_product_cudnn_attention": (
            ["query", "key", "value", "attn_bias", "compute_log_sumexp"],
            ["output", "logsumexp"],
        ),
        "_scaled_dot_product_efficient_attention": (
            ["query", "key", "value", "attn_bias", "compute_log_sumexp"],
            ["output", "log_sumexp"],
        ),
    }
    for name, (args, outs) in wanted.items():
        schema = getattr(torch.ops.aten, name).default._schema
        assert [a.name for a in schema.arguments][: len(args)] == args, name
        assert [r.name for r in schema.returns][:2] == outs, name
        rest = {a.name: a.default_value for a in schema.arguments[len(args) :]}
        assert rest["dropout_p"] == 0.0, name
        assert rest["is_causal"] is False, name
        assert rest["scale"] is None, name


@pytest.mark.parametrize("kernel", [kernels.cudnn, kernels.sdpa_flash, kernels.sdpa_efficient])
@pytest.mark.parametrize("queries", [33, 64, 1])
def test_shapes_of_the_cuda_operators(kernel: kernels.KernelCall, queries: int) -> None:
    """On the meta device, which has their shapes but not their numbers."""
    q, k = (torch.empty(2, s, 6, 64, dtype=torch.bfloat16, device="meta") for s in (queries, 70))
    out, lse = kernel(q, k, k)
    assert (out.shape, out.dtype) == (q.shape, torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((2, 6, queries), torch.float32)


def test_xformers_padded_log_sum_exp_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def padded(q, k, v):
        out, lse = kernels.reference(q, k, v)
        return out, torch.nn.functional.pad(lse, (0, 23), value=float("nan"))

    module = SimpleNamespace(memory_efficient_attention_forward_requires_grad=padded)
    monkeypatch.setattr(kernels, "import_module", lambda name: module)
    check(load_kernel("xformers", KernelTarget((8, 0), BF16, 16)), *inputs((1, 9, 9, 2, 16), BF16))


BF16, FP32 = torch.bfloat16, torch.float32
ALL_INSTALLED: dict[Want, str] = {
    (None, FP32, 16): "cpu_flash",
    ((10, 0), BF16, 128): "flash4",
    ((9, 0), BF16, 128): "flash3",
    ((9, 0), BF16, 256): "flash3",
    ((12, 0), BF16, 128): "flash2",
    ((8, 0), BF16, 128): "flash2",
    ((8, 9), torch.float16, 64): "flash2",
    ((8, 0), FP32, 128): "sdpa_efficient",
    ((7, 0), torch.float16, 128): "sdpa_efficient",
    ((7, 0), BF16, 128): "reference",
    ((9, 0), BF16, 20): "reference",
    ((9, 0), torch.float64, 128): "reference",
}
NONE_INSTALLED: list[tuple[Want, str, list[str]]] = [
    (((10, 0), BF16, 128), "cudnn", ["flash4"]),
    (((9, 0), BF16, 128), "cudnn", ["flash3"]),
    (((9, 0), BF16, 256), "sdpa_flash", ["flash3", "flash2"]),
    (((12, 0), BF16, 128), "sdpa_flash", ["flash2"]),
    (((8, 0), BF16, 128), "sdpa_flash", ["flash2"]),
    (((7, 5), torch.float16, 128), "sdpa_efficient", []),
]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all kernels of torch run here."""
    for name in kernel_choice.IN_TORCH:
        monkeypatch.setitem(kernel_choice.IN_TORCH, name, kernels.reference)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(("target", "want"), ALL_INSTALLED.items(), ids=str)
def test_auto_with_every_package_there(target: Want, want: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in kernel_choice.LOADERS:
        monkeypatch.setitem(kernel_choice.LOADERS, name, lambda: (kernels.reference, "9.9"))
    kernel = fastest_kernel(FASTEST, KernelTarget(*target), CPU)
    assert (kernel.name, kernel.passed_over) == (want, ())


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(("target", "want", "faster"), NONE_INSTALLED, ids=str)
def test_auto_without_packages_says_what_would_be_faster(target: Want, want: str, faster: list[str]) -> None:
    kernel = fastest_kernel(FASTEST, KernelTarget(*target), CPU)
    assert kernel.name == want
    assert [line.split()[0] for line in kernel.passed_over] == [f"attention={name}" for name in faster]
    assert kernel.refused == ()


def test_a_missing_package_is_one_line_with_the_command() -> None:
    with pytest.raises(UserError, match="pip install 'opensora-launch\\[flash\\]'") as caught:
        load_kernel("flash2", KernelTarget((8, 0), BF16, 128))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "target", "why"),
    [
        ("flash2", (None, BF16, 128), "it needs a GPU"),
        ("cpu_flash", ((9, 0), BF16, 128), "it runs on CPUs"),
        ("flash3", ((8, 0), BF16, 128), "it needs sm90, this GPU is sm80"),
        ("flash4", ((8, 0), BF16, 128), "it needs sm90 or newer"),
        ("cudnn", ((7, 0), torch.float16, 128), "it needs sm80 or newer"),
        ("sdpa_flash", ((9, 0), FP32, 128), "it computes in bfloat16, float16, not torch.float32"),
        ("cudnn", ((9, 0), BF16, 192), "heads may have 128 channels at most"),
        ("flash2", ((9, 0), BF16, 20), "a multiple of 8"),
        ("xformers", ((7, 0), BF16, 64), "bf16 needs sm80"),
        ("sage2", (None, BF16, 128), "it needs a GPU"),
        ("sage2", ((10, 0), BF16, 128), "it needs sm80, sm86, sm89, sm90, sm120, this GPU is sm100"),
        ("sage2", ((7, 5), torch.float16, 128), "it needs sm80"),
        ("sage2", ((9, 0), FP32, 128), "it computes in bfloat16, float16, not torch.float32"),
        ("sage2", ((9, 0), BF16, 192), "heads may have 128 channels at most"),
        ("flash3_fp8", ((8, 9), BF16, 128), "it needs sm90, this GPU is sm89"),
        ("flash3_fp8", ((9, 0), FP32, 128), "it computes in bfloat16, float16, not torch.float32"),
        ("flash3_fp8", ((9, 0), BF16, 72), "a multiple of 16"),
    ],
)
def test_why_a_kernel_does_not_suit(kind: str, target: Want, why: str) -> None:
    assert why in str(why_not(kind, KernelTarget(*target)))
    with pytest.raises(UserError, match="cannot be used") as caught:
        load_kernel(kind, KernelTarget(*target))
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_lists_what_is_known() -> None:
    with pytest.raises(UserError, match="attention=flash9 is not known; use one of auto, flash4"):
        choose_kernel("flash9", device=CPU, dtype=FP32, head_dim=8)


@pytest.mark.parametrize("newer", [True, False])
def test_flash3_of_either_age_returns_the_log_sum_exp(newer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def new(q, k, v, softmax_scale=None, causal=False, return_attn_probs=False):
        return kernels.reference(q, k, v) if return_attn_probs else kernels.reference(q, k, v)[0]

    def old(q, k, v, softmax_scale=None, causal=False):
        return kernels.reference(q, k, v)

    module = SimpleNamespace(flash_attn_func=new if newer else old)
    monkeypatch.setattr(kernels, "import_module", lambda name: module)
    kernel = load_kernel("flash3", KernelTarget((9, 0), BF16, 16))
    check(kernel, *inputs((1, 9, 9, 2, 16), BF16))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", GPU_KINDS)
def test_gpu_kernels_equal_plain_softmax(kind: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    device = torch.device("cuda")
    try:
        kernel = load_kernel(kind, KernelTarget(torch.cuda.get_device_capability(device), BF16, 128))
    except UserError as error:
        pytest.skip(str(error))
    for shape in SHAPES:
        if shape[-1] % 8 == 0:
            check(kernel, *inputs(shape, BF16, device))
