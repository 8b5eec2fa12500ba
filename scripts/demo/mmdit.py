"""Train the demo's MMDiT with rectified flow on cached latents, together with the text encoders.

Shapes: B clips, C latent channels, T = 5 latent frames, h = w = 8 latents, S video tokens, p = 2 the patch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor, nn

from demo import clips, text
from demo.generate import FLOW_SHIFT, LATENT_FRAMES, LATENT_SIDE
from demo.training import Learner, Log, Schedule, Stage, run_stage
from demo.vae import VAE_CONFIG, LatentScale, measure_scale
from opensora_launch.model.load import mmdit_config
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.sampling.conditions import condition
from opensora_launch.sampling.latents import pack, position_ids
from opensora_launch.sampling.schedule import shift_timesteps

PATCH = 2
MMDIT_CONFIG: dict[str, Any] = {
    "in_channels": VAE_CONFIG["latent_channels"] * PATCH**2,
    "vec_in_dim": text.CLIP_WIDTH,
    "context_in_dim": text.T5_WIDTH,
    "hidden_size": 160,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 1,
    "depth_single_blocks": 5,
    "axes_dim": [8, 16, 16],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": False,
    "cond_embed": True,
    "fused_qkv": False,
    "use_liger_rope": True,
    "patch_size": PATCH,
}
CLIPS_PER_COMBINATION = 60
SCHEDULE = Schedule(steps=8000, batch=32, peak_rate=1.3e-3, warmup=150)
MATRIX_RATE = 0.012
AVERAGE = 0.995
DROP_TEXT = 0.12
CONDITIONS = {"t2v": 0.5, "i2v_head": 0.26, "i2v_tail": 0.12, "i2v_loop": 0.12}


@dataclass(frozen=True)
class Latents:
    """Hold scaled latents of clips [N, C, T, h, w], of their end frames alone [N, C, 1, h, w], and labels."""

    video: Tensor
    first: Tensor
    last: Tensor
    combos: list[clips.Combination]
    scale: LatentScale

    def weights(self) -> Tensor:
        """Return the weight of each clip's error [N], 1 on average; faint clips weigh more.

        The energy of a latent relative to the empty background grows with contrast: white has fifteen times that of
        blue, and blue would hardly count in a mean square.
        """
        energy = (self.video - self.video.median(dim=0).values).square().mean((1, 2, 3, 4))
        weight = energy.rsqrt()
        return weight / weight.mean()


@torch.no_grad()
def encode_clips(vae: AutoencoderKLHunyuanVideo, path: Path, log: Log) -> Latents:
    """Encode CLIPS_PER_COMBINATION clips of every trained combination once, and keep them in a file."""
    if path.exists():
        saved = torch.load(path)
        combos = [clips.Combination(*words) for words in saved["combos"]]
        return Latents(saved["video"], saved["first"], saved["last"], combos, LatentScale(*saved["scale"]))
    scale = measure_scale(vae)
    generator = torch.Generator().manual_seed(2)
    combos = list(clips.TRAINED) * CLIPS_PER_COMBINATION
    parts: dict[str, list[Tensor]] = {"video": [], "first": [], "last": []}
    for begin in range(0, len(combos), 8):
        part = combos[begin : begin + 8]
        clip, _ = clips.render(part, clips.draw_paths(part, generator), range(clips.FRAMES))
        for name, pixels in (("video", clip), ("first", clip[:, :, :1]), ("last", clip[:, :, -1:])):
            mean = vae.encode(pixels.to(vae.dtype)).latent_dist.mean.float()
            parts[name].append(scale.factor * (mean - scale.shift))
    joined = {name: torch.cat(tensors) for name, tensors in parts.items()}
    log.write(
        stage="latents", clips=len(combos), scale=scale.factor, shift=scale.shift, std=float(joined["video"].std())
    )
    words = [(c.colour, c.shape, c.direction) for c in combos]
    torch.save({**joined, "combos": words, "scale": (scale.factor, scale.shift)}, path)
    return Latents(joined["video"], joined["first"], joined["last"], combos, scale)


def build_mmdit() -> MMDiT:
    """Return new seeded weights in bf16; modulations and the last layer are zero, so that each block adds nothing."""
    torch.manual_seed(9)
    mmdit = MMDiT(mmdit_config(MMDIT_CONFIG))
    for name, module in mmdit.named_modules():
        if isinstance(module, nn.Linear):
            if "mod.lin" in name or "modulation" in name or name == "final_layer.linear":
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return mmdit.bfloat16()


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Draw times [B] in (0, 1), half of them denser in the middle, with the sampler's shift."""
    normal = torch.randn(count, generator=generator).sigmoid()
    even = torch.rand(count, generator=generator)
    chosen = torch.where(torch.rand(count, generator=generator) < 0.5, normal, even)
    return shift_timesteps(chosen, FLOW_SHIFT)


def draw_conditions(latents: Latents, numbers: list[int], generator: torch.Generator) -> Tensor:
    """Return image conditions [B, S, 4 + 4C] of mixed kinds, packed as in generation."""
    names = list(CONDITIONS)
    chances = torch.tensor(list(CONDITIONS.values()))
    kinds = torch.multinomial(chances, len(numbers), replacement=True, generator=generator).tolist()
    parts = []
    for number, kind in zip(numbers, kinds, strict=True):
        first, last = latents.first[number], latents.last[number]
        refs = {"t2v": [], "i2v_head": [first], "i2v_tail": [last], "i2v_loop": [first, last]}[names[kind]]
        parts.append(torch.cat(condition(names[kind], refs, latents.video[number])))
    return pack(torch.stack(parts), PATCH)


def attend_small(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention with plain products: twice as fast to train as torch's kernel, for 100 tokens on a CPU."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    out: Tensor = (scores.softmax(dim=-1) @ v).transpose(1, 2)
    return out


def flow_loss(
    mmdit: MMDiT,
    encoders: text.TextEncoders,
    latents: Latents,
    weights: Tensor,
    batch: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Compute the loss of rectified flow: x = t noise + (1 - t) latent, and the model predicts noise - latent."""
    numbers = torch.randint(len(latents.combos), (batch,), generator=generator).tolist()
    dropped = (torch.rand(batch, generator=generator) < DROP_TEXT).tolist()
    prompts = [
        "" if drop else text.training_prompt(latents.combos[n], generator)
        for n, drop in zip(numbers, dropped, strict=True)
    ]
    txt, y_vec = encoders(prompts)
    clean = pack(latents.video[numbers], PATCH)
    noise = torch.randn(clean.shape, generator=generator)
    t = draw_times(batch, generator)
    side = LATENT_SIDE // PATCH
    predicted = mmdit(
        img=t[:, None, None] * noise + (1 - t[:, None, None]) * clean,
        img_ids=position_ids(LATENT_FRAMES, side, side, torch.device("cpu")).expand(batch, -1, -1),
        txt=txt,
        txt_ids=torch.zeros(batch, txt.shape[1], 3),
        timesteps=t,
        y_vec=y_vec,
        cond=draw_conditions(latents, numbers, generator),
        attend=attend_small,
    )
    error = (predicted.float() - (noise - clean)).square().mean((1, 2))
    return {"loss": (weights[numbers] * error).mean(), "mse": error.mean().detach()}


def train_mmdit(
    folder: Path, log: Log, encoders: text.TextEncoders, latents: Latents, schedule: Schedule = SCHEDULE
) -> MMDiT:
    """Train the MMDiT and the encoders; return both with their averaged weights."""
    mmdit = build_mmdit()
    learner = Learner([mmdit, *encoders.networks], decay=AVERAGE, matrix_rate=MATRIX_RATE)
    weights = latents.weights()
    stage = Stage("mmdit", folder, schedule, save_every=200, log_every=100)
    run_stage(stage, learner, lambda g: flow_loss(mmdit, encoders, latents, weights, schedule.batch, g), log)
    learner.put(learner.average)
    return mmdit
