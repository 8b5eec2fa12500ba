"""Train the demo's autoencoders, narrow versions of the public classes: the VAE on images, then 5 frames, then 17."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from demo import clips, judge
from demo.coders import Coder, DcAe
from demo.training import Learner, Log, Schedule, Stage, gate, run_stage
from opensora_launch.model.folding import fold

KL_WEIGHT = 1e-4
BALANCE_WEIGHT = 0.03  # see imbalance()
LATENT_NOISE = 0.1  # deviation of the noise on latents in training, so that near latents decode alike
SWAP_FIRST, SWAP_LAST = 0.3, 0.3  # whole clips whose end latents come from the frame encoded alone
SHAPE_WEIGHT = 4.0  # weight of a pixel of the moving shape: 1 + this; background: 1


def _error_weights() -> dict[str, float]:
    """Return each colour's weight, 1 on average: the inverse of its contrast to the background."""
    back = clips.pixels(clips.BACKGROUND)
    inverse = {name: 1 / float((clips.pixels(rgb) - back).norm()) for name, rgb in clips.COLOURS.items()}
    return {name: value * len(inverse) / sum(inverse.values()) for name, value in inverse.items()}


ERROR_WEIGHTS = _error_weights()


@dataclass(frozen=True)
class LatentScale:
    """Scale latents, z = factor * (latent - shift), to about zero mean and unit deviation."""

    factor: float
    shift: float


@dataclass(frozen=True)
class Batch:
    """Return clips [B, 3, T, H, W], the shapes' coverage [B, 1, T, H, W], and the weight of each clip's error [B]."""

    clip: Tensor
    cover: Tensor
    weight: Tensor


def draw_batch(frames: int, side: int, count: int, generator: torch.Generator) -> Batch:
    """Draw clips of `frames` frames from any time, with side x side pixels cut out at random around the shape."""
    combos = clips.pick(clips.TRAINED, count, generator)
    weight = torch.tensor([ERROR_WEIGHTS[c.colour] for c in combos])
    first = int(torch.randint(clips.FRAMES - frames + 1, (1,), generator=generator))
    paths = clips.draw_paths(combos, generator)
    clip, cover = clips.render(combos, paths, range(first, first + frames))
    if side == clips.SIDE:
        return Batch(clip, cover, weight)
    middle = paths.start + paths.step * (first + frames / 2)
    shift = (torch.rand(count, 2, generator=generator) - 0.5) * side
    corner = (middle + shift - side / 2).round().long().clamp(0, clips.SIDE - side).tolist()
    both = torch.cat([clip, cover], dim=1)
    cut = torch.stack([b[..., y : y + side, x : x + side] for b, (x, y) in zip(both, corner, strict=True)])
    return Batch(cut[:, :3], cut[:, 3:], weight)


def batch_loss(coder: Coder, count: int, generator: torch.Generator, *, frames: int, side: int) -> dict[str, Tensor]:
    """Return the reconstruction loss of newly drawn clips plus the KL term."""
    batch = draw_batch(frames, side, count, generator)
    mean, logvar = coder.posterior(batch.clip)
    noise = torch.randn(mean.shape, generator=generator)
    latent = mean + ((0.5 * logvar).exp() + LATENT_NOISE) * noise
    if frames == coder.frames > 1:
        latent = swap_ends(coder, latent, batch.clip, generator)
    rebuilt, mse = rebuild(coder, latent, batch)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    uneven = imbalance(coder, mean, batch)
    return {
        "loss": rebuilt + KL_WEIGHT * kl + BALANCE_WEIGHT * uneven,
        "rebuilt": rebuilt.detach(),
        "kl": kl.detach(),
        "imbalance": uneven.detach(),
        "mse": mse,
        "posterior_std": (0.5 * logvar).exp().mean().detach(),
        "latent_std": mean.std().detach(),
    }


def imitation_loss(coder: DcAe, count: int, generator: torch.Generator, *, side: int) -> dict[str, Tensor]:
    """Return the error of the latents, of 16 frames and of the first one alone, against those of the shipped VAE.

    The VAE has a frame more before them, and its 2 x 2 latents are one here. So the shipped MMDiT knows these latents.
    """
    clip = draw_batch(clips.FRAMES, side, count, generator).clip
    first = clip[:, :, 1:2]
    with torch.no_grad():
        wanted = fold(torch.cat([coder.teacher.mean(first), coder.teacher.mean(clip)[:, :, 1:]], dim=2), 1)
    got = torch.cat([coder.mean(first), coder.mean(clip[:, :, 1:])], dim=2)
    loss = (got - wanted).square().mean() / wanted.var()
    return {"loss": loss}


def decoder_loss(coder: Coder, count: int, generator: torch.Generator, *, side: int = clips.SIDE) -> dict[str, Tensor]:
    """Return the reconstruction loss from slightly noisy latents of whole clips; some ends are frames encoded alone."""
    batch = draw_batch(coder.frames, side, count, generator)
    with torch.no_grad():
        latent = coder.mean(batch.clip)
        if coder.frames > 1:
            latent = swap_ends(coder, latent, batch.clip, generator)
    latent = latent + LATENT_NOISE * torch.randn(latent.shape, generator=generator)
    rebuilt, mse = rebuild(coder, latent, batch)
    return {"loss": rebuilt, "mse": mse}


def imbalance(coder: Coder, mean: Tensor, batch: Batch) -> Tensor:
    """Return the variance over the clips of the latents' log energy relative to the empty background's.

    mean is [B, C, t, h, w]; energy is per covered pixel. Without this term, an encoder gives each colour latents as
    large as its contrast: white had fifteen times the energy of blue, and generation, which minimises a mean square,
    lost the outlines of blue shapes.
    """
    blank = clips.pixels(clips.BACKGROUND)[None, :, None, None, None].expand(1, *batch.clip.shape[1:])
    with torch.no_grad():
        empty = coder.mean(blank)
    energy = (mean - empty).square().mean((1, 2, 3, 4)) / batch.cover.mean((1, 2, 3, 4)).clamp(min=0.01)
    variance: Tensor = energy.log().var()
    return variance


def rebuild(coder: Coder, latent: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the weighted reconstruction error, which is minimised, and the plain mean square."""
    error = coder.decode(latent) - batch.clip
    touched = torch.nn.functional.max_pool3d(batch.cover, (1, 5, 5), stride=1, padding=(0, 2, 2)) > 0
    weight = batch.weight[:, None, None, None, None] * (1 + SHAPE_WEIGHT * touched)
    return (weight * (error.abs() + error.square())).mean() / weight.mean(), error.square().mean().detach()


def swap_ends(coder: Coder, latent: Tensor, clip: Tensor, generator: torch.Generator) -> Tensor:
    """In some clips, replace the first or last latent by that of the frame encoded alone.

    Generation decodes such latents if images are given, and the decoder must make the true frames from them.
    """
    chances = torch.rand(2, len(clip), 1, 1, 1, 1, generator=generator)
    parts = list(latent.split([1, latent.shape[2] - 2, 1], dim=2))
    for place, frame, share in ((0, 0, SWAP_FIRST), (2, -1, SWAP_LAST)):
        chosen = chances[place // 2] < share
        if chosen.any():
            alone = coder.mean(clip[:, :, [frame]])
            parts[place] = torch.where(chosen, alone, parts[place])
    return torch.cat(parts, dim=2)


@torch.no_grad()
def round_trip(coder: Coder, combos: Sequence[clips.Combination], seed: int) -> tuple[float, float]:
    """Return the share of true clips judged right after encoding (with a draw) and decoding, and the mean PSNR."""
    generator = torch.Generator().manual_seed(seed)
    right, psnr = 0, 0.0
    for begin in range(0, len(combos), 8):
        part = combos[begin : begin + 8]
        clip, _ = clips.render(part, clips.draw_paths(part, generator), range(coder.frames))
        back = coder.decode(coder.draw(clip, generator)).clamp(-1, 1)
        right += sum(judge.judge(got).agrees(wanted) for got, wanted in zip(back, part, strict=True))
        psnr += sum(judge.psnr(got, wanted) for got, wanted in zip(back, clip, strict=True))
    return right / len(combos), psnr / len(combos)


@torch.no_grad()
def measure_scale(coder: Coder) -> LatentScale:
    """Return mean and deviation of the posterior means over clips of every trained combination."""
    generator = torch.Generator().manual_seed(99)
    clip, _ = clips.render(clips.TRAINED, clips.draw_paths(clips.TRAINED, generator), range(coder.frames))
    latent = torch.cat([coder.mean(part) for part in clip.split(8)])
    return LatentScale(round(1 / float(latent.std()), 5), round(float(latent.mean()), 5))


@torch.no_grad()
def inflate(network: nn.Module) -> None:
    """Move each convolution's whole weight to the newest frame, which does not change images.

    Training on images changes the three taps in time together, and repeated first frames then dominate the rest of a
    clip. After this move, a frame starts from its own latent, and motion is learned from there.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] == 3:
            whole = module.weight.float().sum(dim=2)
            module.weight.zero_()
            module.weight[:, :, -1] = whole


Loss = Callable[..., dict[str, Tensor]]  # of the coder, the batch's size and a generator
Stages = Mapping[str, tuple[Loss, Schedule]]
DECODER_MATRIX_RATE = 0.02  # of the DC-AE's
STAGES: Stages = {
    "vae_images": (partial(batch_loss, frames=1, side=64), Schedule(steps=1000, batch=32, peak_rate=2e-3)),
    "vae_5_frames": (partial(batch_loss, frames=5, side=32), Schedule(steps=350, batch=16, peak_rate=2e-3)),
    "vae_17_frames": (partial(batch_loss, frames=17, side=32), Schedule(steps=200, batch=6, peak_rate=1.2e-3)),
    "vae_17_frames_whole": (partial(batch_loss, frames=17, side=64), Schedule(steps=800, batch=4, peak_rate=1e-3)),
}
DC_AE_STAGES: Stages = {
    "dc_ae_4_frames": (partial(batch_loss, frames=4, side=64), Schedule(steps=300, batch=8, peak_rate=1e-3)),
    "dc_ae_imitation": (partial(imitation_loss, side=32), Schedule(steps=500, batch=8, peak_rate=1.5e-3, warmup=20)),
    "dc_ae_imitation_whole": (
        partial(imitation_loss, side=64),
        Schedule(steps=150, batch=4, peak_rate=1e-3, warmup=10),
    ),
}
IMAGE_STAGES: Stages = {
    "flux_ae": (partial(batch_loss, frames=1, side=64), Schedule(steps=400, batch=24, peak_rate=1e-3, warmup=20))
}


DECODER: Stages = {"vae_decoder": (decoder_loss, Schedule(steps=200, batch=4, peak_rate=8e-4))}
DC_AE_DECODER: Stages = {
    "dc_ae_decoder": (partial(decoder_loss, side=32), Schedule(steps=3000, batch=4, peak_rate=1e-3, warmup=20)),
    "dc_ae_decoder_whole": (decoder_loss, Schedule(steps=1500, batch=4, peak_rate=8e-4, warmup=10)),
}
IMAGE_DECODER: Stages = {"flux_ae_decoder": (decoder_loss, Schedule(steps=50, batch=24, peak_rate=5e-4, warmup=10))}


def train_coder(coder: Coder, parts: Sequence[nn.Module], stages: Stages, folder: Path, log: Log) -> None:
    """Run stages in which these parts of the autoencoder learn: all of it, or its decoder, which changes no latents."""
    for name, (loss, schedule) in stages.items():
        if name == "vae_5_frames":
            inflate(coder.network)
        rate = DECODER_MATRIX_RATE if stages is DC_AE_DECODER else 0.0
        learner = Learner(parts, matrix_rate=rate)  # starts from the weights of the previous stage
        run_stage(Stage(name, folder, schedule), learner, partial(loss, coder, schedule.batch), log)


def check_coder(coder: Coder, name: str, least: float, log: Log) -> None:
    """Check once that so many true clips are judged right after the round trip."""
    if log.passed(name):
        return
    right, psnr = round_trip(coder, clips.all_combinations() * 2, seed=5)
    log.write(stage=name, round_trip_psnr_db=psnr)
    gate(log, name, "true clips judged right after the round trip", right, least)
