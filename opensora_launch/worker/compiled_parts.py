"""Compile the transformer's blocks on all ranks, or on none, and keep the results for later runs."""

import importlib.util
import logging
import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from opensora_launch.errors import UserError
from opensora_launch.model.block_parts import EAGER, Parts, compiled
from opensora_launch.model.video_layout import layout_for
from opensora_launch.parallel.sharded_model import RowInputs, ShardedModel
from opensora_launch.plan.plan import Plan
from opensora_launch.sampling.latents import position_ids
from opensora_launch.schema.autoencoder import VaeKind
from opensora_launch.schema.config import Engine
from opensora_launch.schema.kernel_kinds import Compile
from opensora_launch.worker.context import DTYPES, RankContext

CACHE = "TORCHINDUCTOR_CACHE_DIR"
TEXT, VIDEO = 4, 8  # tokens of the warm-up: of the text, and of the video on each rank

log = logging.getLogger("opensora_launch.worker")


def chosen_parts(
    choice: Compile, device: torch.device, agree: Callable[[str], Sequence[str]] = lambda mine: [mine]
) -> Parts:
    """Return what blocks compute around attention: compiled if this is chosen and every rank has a compiler.

    `agree` returns what is wrong on each rank. All ranks call this together. Raises UserError on all of them if
    compile=on and any has no compiler.
    """
    if choice is Compile.off:
        return EAGER
    for rank, problem in enumerate(agree(why_not_compiled(device))):
        if problem and choice is Compile.on:
            raise UserError(f"compile=on: rank {rank} {problem}; use compile=auto, or install it")
        if problem:
            log.info("blocks are not compiled: rank %d %s", rank, problem)
            return EAGER
    os.environ.setdefault(CACHE, str(cache_folder(device)))
    return compiled()


def why_not_compiled(device: torch.device) -> str:
    """Say what this rank lacks for torch.compile, or ""."""
    names = ("CC", "gcc", "clang", "cc") if device.type == "cuda" else ("CXX", "g++", "clang++")
    named = os.environ.get(names[0])
    if not any(map(shutil.which, [named] if named else names[1:])):
        return f"has no compiler ({' or '.join(names[1:])}, or the one that {names[0]} names)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "has no Python.h (Debian: python3-dev)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "has no triton"
    return ""


def cache_folder(device: torch.device) -> Path:
    """Return where compiled kernels are kept. Those of other versions or devices lie elsewhere."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    where = f"-sm{''.join(map(str, torch.cuda.get_device_capability(device)))}" if device.type == "cuda" else ""
    return home / "opensora-launch" / "compiled" / f"torch-{torch.__version__}{where}"


def may_be_compiled(plan: Plan) -> bool:
    """Whether the blocks have no exchange between their products."""
    return plan.engine is Engine.native and all(layout.tp == 1 for _, layout in plan.layouts)


def compile_ahead(ctx: RankContext, model: ShardedModel) -> None:
    """Compile before the first step, by a forward of a few tokens for each number of rows. All ranks call this."""
    if ctx.parts is EAGER:
        return
    cfg, sequence = ctx.plan.model.mmdit, ctx.mesh.layout.sequence
    dtype, video = DTYPES[ctx.plan.precision], VIDEO * sequence
    mask_and_given = cfg.in_channels + cfg.patch_size**2
    with ctx.recorder.span("compile"):
        for rows in model.meshes:
            row = RowInputs(
                video=0,
                t=0.5,
                txt=torch.zeros(TEXT, cfg.context_in_dim, dtype=dtype, device=ctx.device),
                y_vec=torch.zeros(cfg.vec_in_dim, dtype=dtype, device=ctx.device),
                cond=torch.zeros(video, mask_and_given, device=ctx.device) if cfg.cond_embed else None,
                guidance=1.0,
            )
            latents = torch.zeros(1, video, cfg.in_channels, device=ctx.device)
            model.predict(latents, position_ids(1, 1, video, ctx.device), [row] * rows)
        if ctx.plan.model.vae.kind is VaeKind.causal:
            _compile_norms(ctx)


@torch.no_grad()
def _compile_norms(ctx: RankContext) -> None:
    """Compile the causal VAE's norms for one frame and for several, of any size."""
    groups, layout = ctx.plan.model.vae.norm_num_groups, layout_for(ctx.device, ctx.dtype)
    per_channel = torch.ones(1, 2 * groups, 1, 1, 1, device=ctx.device)
    for frames in (1, 2):
        x = torch.zeros(1, 2 * groups, frames, 4, 4, dtype=ctx.dtype, device=ctx.device)
        x = x.to(memory_format=layout)
        ctx.parts.norms.activated(x, per_channel, per_channel)
        ctx.parts.norms.moments(x[:, :, 0], groups)
