"""Products in fp8: their rounding, which layers have it, and how far the transformer's output moves."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from opensora_launch.engines.placed_weights import blocks_of
from opensora_launch.model.fp8_products import Fp8Linear, fp8_product, fp8_rows, use_fp8_products, why_no_fp8
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.schema.config import MmditConfig, NumericsConfig

SIZES: dict[str, Any] = {"hidden_size": 48, "num_heads": 3, "axes_dim": [4, 6, 6], "depth": 2, "depth_single_blocks": 3}
UNFUSED = {
    *(f"double_blocks.1.{s}_attn.{part}" for s in ("img", "txt") for part in ("q_proj", "k_proj", "v_proj", "proj")),
    *(f"double_blocks.1.{s}_mlp.{part}" for s in ("img", "txt") for part in (0, 2)),
    *(f"single_blocks.{i}.{part}" for i in (0, 1) for part in ("q_proj", "k_proj", "v_mlp", "linear2")),
}
FUSED = {
    *(f"double_blocks.1.{s}_{part}" for s in ("img", "txt") for part in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")),
    *(f"single_blocks.{i}.{part}" for i in (0, 1) for part in ("linear1", "linear2")),
}


def test_a_product_by_hand() -> None:
    """e4m3 has 8 numbers from one power of two to the next; of two equally near ones it takes the even one."""
    row = torch.tensor([448.0, 17.0, -19.0, 1.1])
    rounded, scales = fp8_rows(torch.stack([row, 2 * row, torch.zeros(4)]))
    assert rounded[:2].float().tolist() == [[448.0, 16.0, -20.0, 1.125]] * 2
    assert scales[:2, 0].tolist() == [1.0, 2.0]
    assert rounded[2].float().tolist() == [0.0] * 4
    weight = torch.tensor([[448.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    got = fp8_product(torch.stack([row, 2 * row])[None], weight, torch.tensor([0.5, -3.0]))
    first = 448.0**2 + 16 - 20 + 1.125
    assert got.tolist() == [[[first + 0.5, -3.0], [2 * first + 0.5, -3.0]]]
    assert fp8_product(row[None], weight, None).tolist() == [[first, 0.0]]


@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 48, dtype=torch.bfloat16)], ids=["no bias", "bias"])
def test_the_emulation_rounds_as_torch_does(bias: torch.Tensor | None) -> None:
    rng = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 64, generator=rng).bfloat16() for n in (33, 48))
    (a, a_scales), (b, b_scales) = fp8_rows(x), fp8_rows(weight)
    try:
        want = torch._scaled_mm(a, b.t(), a_scales, b_scales.t(), bias, out_dtype=torch.bfloat16)
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"this torch does not multiply rows in fp8 on a CPU: {error}")
    got = fp8_product(x, weight, bias)
    torch.testing.assert_close(got, want, rtol=2**-7, atol=0)  # a bit of bf16: torch multiplies by the scales earlier
    assert (got != want).float().mean() < 1e-3
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert 0.01 < (want - exact).norm() / exact.norm() < 0.06


def test_rows_do_not_depend_on_each_other() -> None:
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = fp8_product(x, weight, None)
    torch.testing.assert_close(fp8_product(x[:, 2:5], weight[3:9], None), whole[:, 2:5, 3:9], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("fused", "want"), [(False, UNFUSED), (True, FUSED)], ids=["open-sora", "flux"])
def test_first_and_last_block_and_modulations_are_left_alone(fused: bool, want: set[str]) -> None:
    with torch.device("meta"):
        module = MMDiT(MmditConfig(**SIZES, fused_qkv=fused))
    before = dict(module.named_parameters())
    assert not NumericsConfig().fp8_products
    use_fp8_products([*blocks_of(module).values()])
    assert {name for name, layer in module.named_modules() if isinstance(layer, Fp8Linear)} == want
    after = dict(module.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before), "placed weights are views that stay the same objects"


def test_a_cpu_has_it_and_an_old_gpu_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_fp8(torch.device("cpu")) == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert why_no_fp8(torch.device("cuda", 0)) == "has a GPU of sm86, and products in fp8 need sm89 or newer"
