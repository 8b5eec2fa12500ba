"""Write and read the demo's files in the package, in the layout of the public checkpoint."""

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.generate import DEFAULTS, FLOW_SHIFT
from demo.mmdit import MMDIT_CONFIG
from demo.text import CLIP_TOKENS, T5_TOKENS, TextEncoders
from demo.vae import VAE_CONFIG, LatentScale
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.config import MmditConfig, ModelConfig, TextConfig

FOLDER = Path(__file__).resolve().parents[2] / "opensora_launch" / "demo" / "ckpts"
MMDIT, VAE, T5, CLIP = (
    "Open_Sora_v2.safetensors",
    "hunyuan_vae.safetensors",
    "google/t5-v1_1-xxl",
    "openai/clip-vit-large-patch14",
)
MAX_BYTES = 10_000_000


def total_bytes(folder: Path = FOLDER) -> int:
    """Return the size of all files together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def facts(scale: LatentScale) -> dict[str, Any]:
    """Return the model config for these files."""
    return {
        "mmdit": MMDIT_CONFIG,
        "vae": {**VAE_CONFIG, "scale_factor": scale.factor, "shift_factor": scale.shift},
        "text": {"t5_max_length": T5_TOKENS, "clip_max_length": CLIP_TOKENS},
        "sampling": {
            "num_steps": DEFAULTS.num_steps,
            "guidance": DEFAULTS.text_scale,
            "guidance_img": DEFAULTS.image_scale,
            "flow_shift": FLOW_SHIFT,
            "text_osci": DEFAULTS.text_osci,
            "image_osci": DEFAULTS.image_osci,
            "scale_temporal_osci": DEFAULTS.temporal_osci,
        },
    }


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the network's tensors in bf16, each with its own memory."""
    return {name: tensor.detach().bfloat16().clone().contiguous() for name, tensor in network.state_dict().items()}


def export(
    mmdit: nn.Module, vae: AutoencoderKLHunyuanVideo, encoders: TextEncoders, scale: LatentScale, folder: Path = FOLDER
) -> int:
    """Write all files and return their size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights(mmdit), folder / MMDIT)
    save_file(weights(vae), folder / VAE)
    for place, network, tokenizer in (
        (T5, encoders.t5, encoders.t5_tokenizer),
        (CLIP, encoders.clip, encoders.clip_tokenizer),
    ):
        network.save_pretrained(folder / place)
        tokenizer.save_pretrained(folder / place)
    (folder / "config.json").write_text(json.dumps(facts(scale), indent=2) + "\n")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    return total_bytes(folder)


def model_config(folder: Path = FOLDER) -> ModelConfig:
    """Return the package's config of these files."""
    config = json.loads((folder / "config.json").read_text())
    return ModelConfig(
        name="demo",
        folder=str(folder),
        mmdit=MmditConfig(**config["mmdit"]),
        vae=VaeConfig(**config["vae"]),
        text=TextConfig(**config["text"]),
    )
