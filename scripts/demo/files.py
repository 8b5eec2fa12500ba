"""The demo's models, and their files in the package, in the layout of the public checkpoints."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo import coders, mmdit, vae
from demo.generate import DEFAULTS, FLOW_SHIFT
from demo.mmdit import Recipe
from demo.text import CLIP_TOKENS, T5_TOKENS, TextEncoders
from demo.training import Schedule
from opensora_launch.model.image_vae import image_vae_names
from opensora_launch.model.shapes import vae_shapes
from opensora_launch.schema.config import MmditConfig, ModelConfig, TextConfig

FOLDER = Path(__file__).resolve().parents[2] / "opensora_launch" / "demo" / "ckpts"
T5, CLIP = "google/t5-v1_1-xxl", "openai/clip-vit-large-patch14"
MAX_BYTES = 28_000_000


@dataclass(frozen=True)
class Gate:
    """A number that a model must reach on held-out combinations: a field of `score.Score`."""

    cond_type: str
    repeats: int
    figure: str
    least: float


@dataclass(frozen=True)
class Model:
    """One of the demo's models: how it is trained, what it must reach, and the names of its files."""

    name: str
    coder: Callable[[], coders.Coder]
    coder_name: str
    coder_config: dict[str, Any]
    coder_stages: vae.Stages
    recipe: Recipe
    decoder_stages: vae.Stages
    frames: int
    gates: tuple[Gate, ...]
    mmdit_file: str
    vae_file: str
    least_round_trip: float = 0.98  # share of true clips judged right after encoding and decoding

    @property
    def config_path(self) -> Path:
        """Return the path of its config, beside the weights."""
        return FOLDER / f"config{self.name.removeprefix('demo')}.json"

    @property
    def log_path(self) -> Path:
        """Return the path of the log of its training, in the docs."""
        return FOLDER.parents[2] / "docs" / "benchmarks" / f"train_{self.name}.jsonl"


VIDEO = Model(
    name="demo",
    coder=coders.Causal,
    coder_name="vae",
    coder_config=coders.CAUSAL,
    coder_stages=vae.STAGES,
    recipe=mmdit.RECIPE,
    decoder_stages=vae.DECODER,
    frames=17,
    gates=(
        Gate("t2v", 5, "all_three", 0.90),
        Gate("i2v_head", 2, "direction", 0.90),
        Gate("i2v_head", 2, "psnr_mean_db", 28.0),
    ),
    mmdit_file="Open_Sora_v2.safetensors",
    vae_file="hunyuan_vae.safetensors",
)
DC_AE = Model(
    name="demo_dc_ae",
    coder=coders.DcAe,
    coder_name="dc_ae",
    coder_config=coders.DC_AE,
    coder_stages=vae.DC_AE_STAGES,
    recipe=Recipe(
        "mmdit",
        mmdit.DC_AE,
        Schedule(steps=1500, batch=32, peak_rate=5e-4, warmup=50),
        seed=19,
        clips=20,
        matrix_rate=0.004,
        start=lambda: mmdit.without_patches(load_file(FOLDER / VIDEO.mmdit_file)),
        keep_text=True,
    ),
    decoder_stages=vae.DC_AE_DECODER,
    frames=16,
    gates=(Gate("t2v", 5, "all_three", 0.80),),
    mmdit_file="Open_Sora_v2_Video_DC_AE.safetensors",
    vae_file="F16T4C32_AE.safetensors",
    least_round_trip=0.90,  # at 4 x 4 positions instead of 8 x 8
)
IMAGE = Model(
    name="demo_flux",
    coder=coders.Image,
    coder_name="flux_ae",
    coder_config=coders.IMAGE,
    coder_stages=vae.IMAGE_STAGES,
    recipe=Recipe(
        "mmdit",
        mmdit.IMAGE,
        Schedule(steps=600, batch=32, peak_rate=5e-4, warmup=50),
        seed=29,
        clips=20,
        matrix_rate=0.004,
        start=lambda: mmdit.in_flux_layout(load_file(FOLDER / VIDEO.mmdit_file), mmdit.IMAGE),
        keep_text=True,
    ),
    decoder_stages=vae.IMAGE_DECODER,
    frames=1,
    gates=(
        Gate("t2i", 5, "all_three", 0.90),
        Gate("t2i2v", 2, "direction", 0.90),
        Gate("t2i2v", 2, "psnr_mean_db", 28.0),
    ),
    mmdit_file="flux1-demo.safetensors",
    vae_file="flux1-demo-ae.safetensors",
)
MODELS = {model.name: model for model in (VIDEO, DC_AE, IMAGE)}


def total_bytes(folder: Path = FOLDER) -> int:
    """Return the size of all files together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def facts(model: Model, scale: vae.LatentScale) -> dict[str, Any]:
    """Return the model config for these files."""
    return {
        "trained_frames": model.frames,
        "mmdit_file": model.mmdit_file,
        "vae_file": model.vae_file,
        "mmdit": model.recipe.config,
        "vae": {**model.coder_config, "scale_factor": scale.factor, "shift_factor": scale.shift},
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


def coder_weights(model: Model, coder: coders.Coder) -> dict[str, Tensor]:
    """Return the autoencoder's tensors under their public names."""
    own = weights(coder.network)
    if model.coder is not coders.Image:
        return own
    cfg = coders.vae_config(model.coder_config)
    names, shapes = image_vae_names(cfg), vae_shapes(cfg)
    return {names[name]: x.reshape(shapes[names[name]]) for name, x in own.items()}


def export(
    model: Model, transformer: nn.Module, coder: coders.Coder, encoders: TextEncoders, scale: vae.LatentScale
) -> int:
    """Write the model's files, and return the size of all models in bytes."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(weights(transformer), FOLDER / model.mmdit_file)
    save_file(coder_weights(model, coder), FOLDER / model.vae_file)
    if not model.recipe.keep_text:
        encoders.copy_cases()
        for place, network, tokenizer in (
            (T5, encoders.t5, encoders.t5_tokenizer),
            (CLIP, encoders.clip, encoders.clip_tokenizer),
        ):
            network.save_pretrained(FOLDER / place)
            tokenizer.save_pretrained(FOLDER / place)
    model.config_path.write_text(json.dumps(facts(model, scale), indent=2) + "\n")
    for path in FOLDER.rglob("*.safetensors"):
        path.chmod(0o644)
    return total_bytes()


def model_config(model: Model = VIDEO) -> ModelConfig:
    """Return the package's config of the model's files."""
    config = json.loads(model.config_path.read_text())
    return ModelConfig(
        name=model.name,
        trained_frames=config["trained_frames"],
        folder=str(FOLDER),
        mmdit_file=config["mmdit_file"],
        vae_file=config["vae_file"],
        mmdit=MmditConfig(**config["mmdit"]),
        vae=coders.vae_config(config["vae"]),
        text=TextConfig(**config["text"]),
    )
