"""Train the demo's MMDiTs with rectified flow on cached latents; the first one together with the text encoders.

Shapes: B clips, C latent channels, T latent frames, h = w latents, S video tokens, p the patch. The demo has T = 5,
h = w = 8 and p = 2; with the DC-AE, T = 4, h = w = 4 and p = 1; an image has T = 1, h = w = 8 and p = 2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from demo import clips, coders, text
from demo.coders import Coder
from demo.generate import FLOW_SHIFT
from demo.training import Learner, Log, Schedule, Stage, run_stage
from demo.vae import LatentScale, measure_scale
from opensora_launch.model.load import mmdit_config
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.sampling.conditions import condition
from opensora_launch.sampling.latents import pack, position_ids
from opensora_launch.sampling.schedule import shift_timesteps

VIDEO: dict[str, Any] = {
    "in_channels": coders.CAUSAL["latent_channels"] * 4,
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
    "patch_size": 2,
}
DC_AE: dict[str, Any] = {**VIDEO, "in_channels": coders.DC_AE["latent_channels"], "patch_size": 1}
IMAGE: dict[str, Any] = {
    **VIDEO,
    "in_channels": coders.IMAGE["latent_channels"] * 4,
    "depth_single_blocks": 4,
    "cond_embed": False,
    "fused_qkv": True,
    "use_liger_rope": False,
}
AVERAGE = 0.995
DROP_TEXT = 0.12
CONDITIONS = {"t2v": 0.5, "i2v_head": 0.26, "i2v_tail": 0.12, "i2v_loop": 0.12}


@dataclass(frozen=True)
class Recipe:
    """Say how an MMDiT trains."""

    stage: str
    config: dict[str, Any]
    schedule: Schedule
    seed: int = 9
    clips: int = 60  # per combination
    conditions: Mapping[str, float] = field(default_factory=lambda: CONDITIONS)  # kinds and their shares
    matrix_rate: float = 0.012
    start: Callable[[], Mapping[str, Tensor]] = dict  # gives the first values of these weights
    keep_text: bool = False  # the encoders stay as they are


RECIPE = Recipe("mmdit", VIDEO, Schedule(steps=8000, batch=32, peak_rate=1.3e-3, warmup=150))


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
def encode_clips(coder: Coder, count: int, path: Path, log: Log) -> Latents:
    """Encode `count` clips of every trained combination once, and keep them in a file."""
    if path.exists():
        saved = torch.load(path)
        combos = [clips.Combination(*words) for words in saved["combos"]]
        return Latents(saved["video"], saved["first"], saved["last"], combos, LatentScale(*saved["scale"]))
    scale = measure_scale(coder)
    generator = torch.Generator().manual_seed(2)
    combos = list(clips.TRAINED) * count
    parts: dict[str, list[Tensor]] = {"video": [], "first": [], "last": []}
    for begin in range(0, len(combos), 8):
        part = combos[begin : begin + 8]
        clip, _ = clips.render(part, clips.draw_paths(part, generator), range(coder.frames))
        for name, pixels in (("video", clip), ("first", clip[:, :, :1]), ("last", clip[:, :, -1:])):
            parts[name].append(scale.factor * (coder.mean(pixels) - scale.shift))
    joined = {name: torch.cat(tensors) for name, tensors in parts.items()}
    log.write(
        stage="latents", clips=len(combos), scale=scale.factor, shift=scale.shift, std=float(joined["video"].std())
    )
    words = [(c.colour, c.shape, c.direction) for c in combos]
    torch.save({**joined, "combos": words, "scale": (scale.factor, scale.shift)}, path)
    return Latents(joined["video"], joined["first"], joined["last"], combos, scale)


def build_mmdit(recipe: Recipe) -> MMDiT:
    """Return new seeded weights in bf16; modulations and the last layer are zero, so that each block adds nothing."""
    torch.manual_seed(recipe.seed)
    mmdit = MMDiT(mmdit_config(recipe.config))
    for name, module in mmdit.named_modules():
        if isinstance(module, nn.Linear):
            if "mod.lin" in name or "modulation" in name or name == "final_layer.linear":
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    mmdit.load_state_dict({**mmdit.state_dict(), **recipe.start()})
    return mmdit.bfloat16()


def without_patches(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an MMDiT's weights for tokens of one latent: the four equal channels of a token's mask become one."""
    mask, given = tensors["cond_in.weight"].tensor_split([4], dim=1)
    return {**tensors, "cond_in.weight": torch.cat([mask.sum(1, keepdim=True), given], dim=1)}


def in_flux_layout(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of the demo's first blocks in Flux's layout: no conditions, q, k and v fused, other pairs."""
    size = config["hidden_size"] // config["num_heads"]
    pairs = torch.arange(size).unflatten(0, (2, -1)).T.flatten()  # from channels d, d + half a head
    out: dict[str, Tensor] = {}
    for name, x in tensors.items():
        if name.startswith("single_blocks.") and int(name.split(".")[1]) >= config["depth_single_blocks"]:
            continue
        head, _, kind = name.rpartition(".")
        block, _, part = head.rpartition(".")
        if part in ("q_proj", "k_proj"):
            x = x.unflatten(0, (-1, size))[:, pairs].flatten(0, 1)
        if part in ("query_norm", "key_norm"):
            x = x[pairs]
        if part == "q_proj":
            fused = "linear1" if block.startswith("single_blocks.") else "qkv"
            out[f"{block}.{fused}.{kind}"] = x
        out[name] = x
    for name in [n for n in out if ".linear1." in n or ".qkv." in n]:
        block, part, kind = name.rsplit(".", 2)
        last = "v_mlp" if part == "linear1" else "v_proj"
        out[name] = torch.cat([out.pop(f"{block}.{each}.{kind}") for each in ("q_proj", "k_proj", last)])
    out["img_in.bias"] = out["img_in.bias"] + out.pop("cond_in.bias")
    del out["cond_in.weight"]
    return out


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Draw times [B] in (0, 1), half of them denser in the middle, with the sampler's shift."""
    normal = torch.randn(count, generator=generator).sigmoid()
    even = torch.rand(count, generator=generator)
    chosen = torch.where(torch.rand(count, generator=generator) < 0.5, normal, even)
    return shift_timesteps(chosen, FLOW_SHIFT)


def draw_conditions(
    latents: Latents, numbers: list[int], shares: Mapping[str, float], patch: int, generator: torch.Generator
) -> Tensor:
    """Return image conditions [B, S, pp + ppC] of mixed kinds, packed as in generation."""
    names = list(shares)
    chances = torch.tensor(list(shares.values()))
    kinds = torch.multinomial(chances, len(numbers), replacement=True, generator=generator).tolist()
    parts = []
    for number, kind in zip(numbers, kinds, strict=True):
        first, last = latents.first[number], latents.last[number]
        refs = {"t2v": [], "i2v_head": [first], "i2v_tail": [last], "i2v_loop": [first, last]}[names[kind]]
        parts.append(torch.cat(condition(names[kind], refs, latents.video[number])))
    return pack(torch.stack(parts), patch)


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
    recipe: Recipe,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Compute the loss of rectified flow: x = t noise + (1 - t) latent, and the model predicts noise - latent."""
    batch, patch = recipe.schedule.batch, mmdit.cfg.patch_size
    numbers = torch.randint(len(latents.combos), (batch,), generator=generator).tolist()
    dropped = (torch.rand(batch, generator=generator) < DROP_TEXT).tolist()
    prompts = [
        "" if drop else text.training_prompt(latents.combos[n], generator)
        for n, drop in zip(numbers, dropped, strict=True)
    ]
    with torch.set_grad_enabled(not recipe.keep_text):
        txt, y_vec = encoders(prompts)
    video = latents.video[numbers]
    clean = pack(video, patch)
    noise = torch.randn(clean.shape, generator=generator)
    t = draw_times(batch, generator)
    frames, height, width = video.shape[2], video.shape[3] // patch, video.shape[4] // patch
    shares = recipe.conditions
    predicted = mmdit(
        img=t[:, None, None] * noise + (1 - t[:, None, None]) * clean,
        img_ids=position_ids(frames, height, width, torch.device("cpu")).expand(batch, -1, -1),
        txt=txt,
        txt_ids=torch.zeros(batch, txt.shape[1], 3),
        timesteps=t,
        y_vec=y_vec,
        cond=draw_conditions(latents, numbers, shares, patch, generator) if mmdit.cfg.cond_embed else None,
        attend=attend_small,
    )
    error = (predicted.float() - (noise - clean)).square().mean((1, 2))
    return {"loss": (weights[numbers] * error).mean(), "mse": error.mean().detach()}


def train_mmdit(folder: Path, log: Log, encoders: text.TextEncoders, latents: Latents, recipe: Recipe) -> MMDiT:
    """Train the MMDiT, and the encoders unless they are kept; return them with their averaged weights."""
    mmdit = build_mmdit(recipe)
    networks = [mmdit] if recipe.keep_text else [mmdit, *encoders.networks]
    learner = Learner(networks, decay=AVERAGE, matrix_rate=recipe.matrix_rate)
    weights = latents.weights()
    stage = Stage(recipe.stage, folder, recipe.schedule, save_every=200, log_every=100)
    run_stage(stage, learner, lambda g: flow_loss(mmdit, encoders, latents, weights, recipe, g), log)
    learner.put(learner.average)
    return mmdit
