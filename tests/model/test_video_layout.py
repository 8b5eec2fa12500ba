"""How the VAE's tensors lie in memory: plainly on CPUs, with the channels last for 16-bit weights on CUDA."""

import pytest
import torch
import torch.nn.functional as F

from opensora_launch.model import causal_conv
from opensora_launch.model import vae as vae_module
from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.vae import decode_latents, encode_pixels, load_vae
from opensora_launch.model.video_layout import layout_for, layout_of, repeat_edges
from tests.model.test_vae import CFG, TENSORS, vae  # noqa: F401 a fixture


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("before", "around"), [(2, 1), (0, 1), (3, 2)])
def test_edges_are_repeated_as_torch_repeats_them(before: int, around: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    for x in (
        torch.randn(2, 3, 4, 5, 6),
        torch.randn(1, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)[:, :, 1:],
    ):
        got = repeat_edges(x, None, before, around, layout)
        assert torch.equal(got, F.pad(x, (around, around, around, around, before, 0), mode="replicate"))
        assert layout_of(got) == layout


@pytest.mark.parametrize("numbers", [2**27, 3000])
def test_channels_may_lie_last_in_memory(
    vae: CausalVae,  # noqa: F811
    numbers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on CUDA, where no convolution may see a plain video. Results are plain, and the same within rounding."""
    monkeypatch.setattr(causal_conv, "VAE_CHUNK_NUMBERS", numbers)
    monkeypatch.setattr(vae_module, "layout_for", lambda device, dtype: torch.channels_last_3d)
    last = load_vae(CFG, vae.state_dict())
    seen: list[torch.memory_format] = []
    for conv in last.modules():
        if isinstance(conv, torch.nn.Conv3d) and conv.kernel_size != (1, 1, 1):
            conv.register_forward_pre_hook(lambda _, args: seen.append(layout_of(args[0])))
    latent, pixels = TENSORS["latent"][..., :4, :5], TENSORS["pixels"][..., :40, :32]
    for got, want in (
        (decode_latents(last, CFG, latent), decode_latents(vae, CFG, latent)),
        (encode_pixels(last, CFG, pixels), encode_pixels(vae, CFG, pixels)),
    ):
        assert got is not None
        assert got.is_contiguous()
        torch.testing.assert_close(got, want, atol=3e-5, rtol=3e-5)
    assert set(seen) == {torch.channels_last_3d}


@pytest.mark.parametrize(
    ("device", "dtype", "layout"),
    [
        ("cuda", torch.bfloat16, torch.channels_last_3d),
        ("cuda", torch.float32, torch.contiguous_format),
        ("cpu", torch.bfloat16, torch.contiguous_format),
    ],
)
def test_only_16_bit_weights_on_cuda_lie_last(device: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    assert layout_for(torch.device(device), dtype) == layout
