"""A folder of weights for the cases that encode texts."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from opensora_launch.model.causal_vae import CausalVae
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.weights import random_tensors
from opensora_launch.schema.config import Init, ModelConfig
from tests.model.text_folders import make_clip, make_t5, tiny_model
from tests.worker.plans import TINY


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A folder with all four networks."""
    folder = tmp_path_factory.mktemp("ckpts")
    texts = tiny_model(folder)
    mmdit = replace(TINY.mmdit, context_in_dim=texts.mmdit.context_in_dim, vec_in_dim=texts.mmdit.vec_in_dim)
    made = replace(
        TINY, init=Init.checkpoint, folder=str(folder), mmdit=mmdit, text=texts.text, t5_folder="t5", clip_folder="clip"
    )
    with torch.device("meta"):
        networks = {made.mmdit_file: MMDiT(mmdit), made.vae_file: CausalVae(made.vae)}
    for name, network in networks.items():
        tensors = random_tensors(network, seed=1, dtype=torch.float32, device=torch.device("cpu"))
        save_file(tensors, folder / name)
    for name, encoder in (("t5", make_t5(folder / "t5")), ("clip", make_clip(folder / "clip"))):
        tensors = {k: v.clone().contiguous() for k, v in encoder.state_dict().items()}
        save_file(tensors, folder / name / "model.safetensors")
    return made
