"""SageAttention 2 and FlashAttention-3 in fp8: what we pass and expect, against stand-ins of their signature.

The stand-ins compute true attention by the conventions that were read in the libraries' sources; no library is here. If
asked to, they also round to 8 bits as the libraries do, so that the tolerance of the trial has a source.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora_launch.errors import UserError
from opensora_launch.model import kernel_choice, kernels
from opensora_launch.model.kernel_choice import EIGHT_BITS, FASTEST, Kernel, KernelTarget, load_kernel, try_kernel
from opensora_launch.schema.kernel_kinds import APPROXIMATE
from tests.model.test_kernel_choice import inputs, plain

CPU, BF16, FP16, E4M3 = torch.device("cpu"), torch.bfloat16, torch.float16, torch.float8_e4m3fn
H100 = KernelTarget((9, 0), BF16, 128)
LOG2_E = 1.44269504  # as SageAttention writes it


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, rounded: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return out, B S N D, and the natural lse, B N S, in fp64; `rounded` is applied to the weights before v."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * scale
    most = scores.amax(-1, keepdim=True)
    weights = (scores - most).exp()
    out = rounded(weights) @ v / weights.sum(-1, keepdim=True)
    return [out.transpose(1, 2), weights.sum(-1).log() + most.squeeze(-1)]


def in_e4m3(largest: float) -> Callable[[Tensor], Tensor]:
    return lambda weights: (weights * largest).to(E4M3).double() / largest


def in_int8(x: Tensor, tokens: int = 64) -> Tensor:
    """Round blocks of tokens of one head, each with its own scale; the library's blocks are smaller."""
    blocks = x.double().split(tokens, dim=1)
    scales = [block.abs().amax((1, 3), keepdim=True) / 127 + 1e-7 for block in blocks]
    return torch.cat([(block / scale).round() * scale for block, scale in zip(blocks, scales, strict=True)], dim=1)


class Sage:
    """The module `sageattention`, release 2.2.0."""

    def __init__(self, *, rounds: bool = False) -> None:
        self.rounds = rounds

    def sageattn_qk_int8_pv_fp16_cuda(self, *_: Any) -> None:
        raise AssertionError("only its presence counts")

    def sageattn(
        self, q: Tensor, k: Tensor, v: Tensor, tensor_layout: str = "HND", is_causal: bool = False,
        sm_scale: float | None = None, return_lse: bool = False, **kwargs: Any,
    ) -> tuple[Tensor, Tensor] | Tensor:  # fmt: skip
        assert tensor_layout == "NHD"
        assert not is_causal
        assert not kwargs
        assert q.dtype == k.dtype == v.dtype
        assert q.dtype in (BF16, FP16)
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert q.shape[-1] <= 128
        scale = sm_scale or q.shape[-1] ** -0.5
        mean = k.mean(dim=1, keepdim=True)
        centred, weights = k.double() - mean.double(), in_e4m3(448.0) if self.rounds else torch.Tensor.double
        if self.rounds:
            channels = v.double().abs().amax(1, keepdim=True) / 448
            v = (v / channels).to(E4M3).double() * channels
            out, lse = attention(in_int8(q), in_int8(centred), v, scale, weights)
        else:
            out, lse = attention(q, centred, v, scale, weights)
        in_base_2 = (lse * LOG2_E).float()
        added = (q.transpose(1, 2) @ mean.transpose(1, 2).mT).squeeze(-1).float()
        lse = in_base_2 / LOG2_E + added * scale
        return (out.to(q.dtype), lse) if return_lse else out.to(q.dtype)


class Flash3:
    """The module `flash_attn_interface` of the source build, or `fa3_fwd_interface` of the wheel 0.0.3."""

    def __init__(self, *, rounds: bool = False) -> None:
        self.rounds = rounds

    def flash_attn_func(
        self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, causal: bool = False,
        qv: Tensor | None = None, q_descale: Tensor | None = None, k_descale: Tensor | None = None,
        v_descale: Tensor | None = None, window_size: tuple[int, int] = (-1, -1), attention_chunk: int = 0,
        softcap: float = 0.0, num_splits: int = 1, pack_gqa: bool | None = None, deterministic: bool = False,
        sm_margin: int = 0, return_attn_probs: bool = False,
    ) -> tuple[Tensor, Tensor] | Tensor:  # fmt: skip
        assert not causal
        assert q.dtype == k.dtype == v.dtype == E4M3
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert q.shape[-1] % 16 == 0
        wide = list[Tensor]()
        for x, descale in ((q, q_descale), (k, k_descale), (v, v_descale)):
            assert descale is not None
            assert (descale.dtype, descale.shape) == (torch.float32, (k.shape[0], k.shape[2]))
            wide.append(x.double() * descale.double()[:, None, :, None])
        weights = in_e4m3(256.0) if self.rounds else torch.Tensor.double
        out, lse = attention(wide[0], wide[1], wide[2], softmax_scale or q.shape[-1] ** -0.5, weights)
        return (out.to(BF16), lse.float()) if return_attn_probs else out.to(BF16)


MODULES: dict[str, Callable[..., Any]] = {"sage2": Sage, "flash3_fp8": Flash3}


def loaded(name: str, module: Any, monkeypatch: pytest.MonkeyPatch, target: KernelTarget = H100) -> Kernel:
    monkeypatch.setattr(kernels, "import_module", lambda _: module)
    return load_kernel(name, target)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("dim", [24, 64, 128])
def test_sage2_gives_the_result_and_the_natural_lse(dtype: torch.dtype, dim: int, monkeypatch) -> None:
    kernel = loaded("sage2", Sage(), monkeypatch, KernelTarget((8, 9), dtype, dim))
    q, k, v = inputs((2, 33, 70, 3, dim), dtype)
    k = k + 1
    out, lse = kernel.call(q, k, v)
    want, want_lse = plain(q, k, v)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.double(), want, atol=0.02, rtol=0.02)
    torch.testing.assert_close(lse.double(), want_lse, atol=0.02, rtol=0.0)  # q times the mean of k has 16 bits


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_flash3_fp8_gives_each_head_its_scale(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numbers that fp8 holds, times a power of two per row and head, nothing is lost."""
    kernel = loaded("flash3_fp8", Flash3(), monkeypatch, KernelTarget((9, 0), dtype, 64))
    powers = torch.tensor([[1.0, 4.0, 0.25], [0.5, 2.0, 1.0]])[:, None, :, None]
    q, k, v = (x.to(E4M3).to(dtype) * powers.to(dtype) for x in inputs((2, 33, 70, 3, 64), dtype))
    out, lse = kernel.call(q, k, v)
    want, want_lse = plain(q, k, v)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.double(), want, atol=0.02, rtol=0.01)
    torch.testing.assert_close(lse.double(), want_lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-3, 1.0, 448.0, 6e4])
def test_heads_of_any_size_fit_fp8(dtype: torch.dtype, size: float) -> None:
    x = size * torch.linspace(-1, 1, 96).reshape(1, 3, 2, 16).to(dtype)
    numbers, scale = kernels.heads_to_fp8(x)
    back = numbers.double() * scale.double()[:, None, :, None]
    assert bool(back.isfinite().all())
    torch.testing.assert_close(back, x.double(), atol=1e-7 + size * 2**-12, rtol=2**-4)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dim", [64, 128])
def test_the_trial_accepts_twice_the_error_of_eight_bits(name: str, dim: int, monkeypatch) -> None:
    target = KernelTarget((9, 0), BF16, dim)
    kernel = loaded(name, MODULES[name](rounds=True), monkeypatch, target)
    assert try_kernel(kernel, target, CPU) is None
    out, lse = EIGHT_BITS[name]
    monkeypatch.setitem(EIGHT_BITS, name, (out / 2, lse / 2))
    assert try_kernel(kernel, target, CPU) is None
    monkeypatch.delitem(EIGHT_BITS, name)
    assert "differ from the reference" in str(try_kernel(kernel, target, CPU)), "the usual bound is too narrow"


def lse_of_centred_keys(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, _ = kernels.reference(q, k, v)
    return out, kernels.reference(q, k - k.mean(1, keepdim=True), v)[1]


WRONG: dict[str, tuple[str, kernels.KernelCall]] = {
    "lse in base 2": ("sage2", lambda q, k, v: (kernels.reference(q, k, v)[0], kernels.reference(q, k, v)[1] * LOG2_E)),
    "lse without the mean of k": ("sage2", lse_of_centred_keys),
    "lse of weights times 256": (
        "flash3_fp8",
        lambda q, k, v: (kernels.reference(q, k, v)[0], kernels.reference(q, k, v)[1] + math.log(256)),
    ),
    "v at another scale": ("flash3_fp8", lambda q, k, v: kernels.reference(q, k, 2 * v)),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_trial_refuses_another_convention(what: str) -> None:
    name, call = WRONG[what]
    assert "differ from the reference" in str(try_kernel(Kernel(name, "9.9", call), H100, CPU))


@pytest.mark.parametrize("name", MODULES)
def test_heads_may_be_shared_and_shares_of_tokens_merge(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ulysses shares heads: the same bits. A ring shares tokens: other ones, as close to the truth."""
    call = loaded(name, MODULES[name](rounds=True), monkeypatch).call
    q, k, v = inputs((1, 200, 260, 4, 128), BF16)
    k, cut = k + 2, 130  # keys with a mean, in two parts that have scales of their own
    v[:, :cut] *= 3
    whole, whole_lse = call(q, k, v)
    heads = [call(*(x[:, :, part] for x in (q, k, v))) for part in (slice(0, 1), slice(1, 4))]
    assert torch.equal(torch.cat([out for out, _ in heads], 2), whole)
    assert torch.equal(torch.cat([lse for _, lse in heads], 1), whole_lse)
    parts = [call(q, k[:, part], v[:, part]) for part in (slice(0, cut), slice(cut, None))]
    lse = torch.stack([lse for _, lse in parts]).logsumexp(0)
    merged = sum(out * (part - lse).exp().transpose(1, 2)[..., None] for out, part in parts)
    assert not torch.equal(lse, whole_lse)
    for out, its_lse in ((whole, whole_lse), (merged, lse)):
        want, want_lse = plain(q, k, v)
        assert float((out - want).abs().max()) < 3 * EIGHT_BITS[name][0]  # v is up to three times that of the trial
        assert float((its_lse - want_lse).abs().max()) < 3 * EIGHT_BITS[name][1]


def test_auto_takes_none_of_them() -> None:
    assert set(EIGHT_BITS) == APPROXIMATE
    assert APPROXIMATE.isdisjoint(FASTEST)


def test_sageattention_1_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes `return_lse` without a word and returns no lse."""
    monkeypatch.setattr(kernels, "version_of", lambda *_: "sageattention 1.0.6")
    with pytest.raises(UserError, match=r"attention=sage2 cannot be imported \(sageattention 1.0.6 is not") as caught:
        loaded("sage2", SimpleNamespace(sageattn=plain), monkeypatch)
    assert str(caught.value).endswith("; pip install --no-build-isolation git+https://github.com/thu-ml/SageAttention")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_library_is_one_line_with_the_command(name: str) -> None:
    with pytest.raises(UserError, match=f"attention={name} cannot be imported .*; pip install") as caught:
        load_kernel(name, H100)
    assert "\n" not in str(caught.value)


def test_flash3_without_scales_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Betas of 2024 call them descale_q."""

    def beta(q, k, v, softmax_scale=None, causal=False, descale_q=None, descale_k=None, descale_v=None):
        return plain(q, k, v)

    monkeypatch.setattr(kernels, "import_module", lambda _: SimpleNamespace(flash_attn_func=beta))
    with pytest.raises(UserError, match=r"does not work here: TypeError: .* 'q_descale'; use attention=auto") as caught:
        kernel_choice.fastest_kernel(("flash3_fp8",), H100, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODULES)
def test_the_libraries_pass_their_trial_on_a_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    target = KernelTarget(torch.cuda.get_device_capability(), BF16, 128)
    try:
        kernel = load_kernel(name, target)
    except UserError as error:
        pytest.skip(str(error))
    assert try_kernel(kernel, target, torch.device("cuda")) is None
