"""Run the training's stages in order."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from demo import files
from demo import mmdit as flow
from demo.generate import load
from demo.mmdit import encode_clips, train_mmdit
from demo.score import score
from demo.text import train_text
from demo.training import Log, StageFailed, gate
from demo.vae import DECODER, train_decoder, train_vae

STAGES = ("vae", "text", "latents", "mmdit", "decoder", "export")
LEAST_ALL_RIGHT = 0.90
LEAST_DIRECTION = 0.90
LEAST_PSNR_DB = 28.0


def run(stages: Sequence[str], folder: Path, threads: int) -> None:
    """Run up to the last of these stages; finished stages are loaded from their checkpoints.

    ["export"] alone trains no MMDiT and no decoder: it writes what their checkpoints hold.
    """
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "log.jsonl")
    last = max(STAGES.index(stage) for stage in stages)
    vae = train_vae(folder, log)
    if last < STAGES.index("text"):
        return
    encoders = train_text(folder, log)
    if last < STAGES.index("latents"):
        return
    latents = encode_clips(vae, folder / "latents.pt", log)
    if stages == ["decoder"]:  # needs nothing from the MMDiT: both may run at the same time
        train_decoder(vae, folder, log)
        return
    if last < STAGES.index("mmdit"):
        return
    only = stages == ["export"]
    mmdit = train_mmdit(folder, log, encoders, latents, replace(flow.SCHEDULE, steps=0) if only else flow.SCHEDULE)
    if last < STAGES.index("decoder"):
        return
    train_decoder(vae, folder, log, replace(DECODER, steps=0) if only else DECODER)
    if last < STAGES.index("export"):
        return
    encoders.copy_cases()
    size = files.export(mmdit, vae, encoders, latents.scale)
    if size > files.MAX_BYTES:
        raise StageFailed(f"export: the files have {size} bytes, but at most {files.MAX_BYTES} are allowed")
    log.write(stage="export", bytes=size)
    try:
        final_gates(log)
    finally:
        shutil.copy(log.path, files.FOLDER.parents[2] / "docs" / "benchmarks" / "train_demo.jsonl")


def final_gates(log: Log) -> None:
    """Judge held-out combinations from the files alone, in fp32."""
    networks = load(files.model_config())
    text, _ = score(networks, "t2v", repeats=5)
    log.write(stage="export", t2v_colour=text.colour, t2v_shape=text.shape, t2v_direction=text.direction)
    gate(log, "export", "t2v all three right", text.all_three, LEAST_ALL_RIGHT)
    image, _ = score(networks, "i2v_head", repeats=2)
    gate(log, "export", "i2v_head direction right", image.direction, LEAST_DIRECTION)
    log.write(stage="export", i2v_head_worst_psnr_db=image.psnr_worst_db)
    gate(log, "export", "i2v_head first frame, mean PSNR in dB", image.psnr_mean_db or 0.0, LEAST_PSNR_DB)
