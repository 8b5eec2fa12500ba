"""Run the stages of a model's training in order."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from demo import files
from demo.generate import load
from demo.mmdit import encode_clips, train_mmdit
from demo.score import Score, score
from demo.text import shipped_text_encoders, train_text
from demo.training import Log, StageFailed, gate
from demo.vae import check_coder, train_coder

STAGES = ("vae", "text", "latents", "mmdit", "decoder", "export")


def run(model: files.Model, stages: Sequence[str], folder: Path, threads: int) -> None:
    """Run up to the last of these stages; finished stages are loaded from their checkpoints.

    ["export"] alone trains no MMDiT and no decoder: it writes what their checkpoints hold.
    """
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "log.jsonl")
    last = max(STAGES.index(stage) for stage in stages)
    coder, recipe, decoder = model.coder(), model.recipe, model.decoder_stages
    train_coder(coder, [coder.network], model.coder_stages, folder, log)
    if model is not files.DC_AE:  # its decoder learns last
        check_coder(coder, model.coder_name, model.least_round_trip, log)
    if last < STAGES.index("text"):
        return
    if stages == ["decoder"]:  # needs nothing from the MMDiT: both may run at the same time
        train_coder(coder, coder.decoder, decoder, folder, log)
        check_coder(coder, model.coder_name, model.least_round_trip, log)
        return
    if recipe.keep_text:
        encoders = shipped_text_encoders(files.FOLDER / files.T5, files.FOLDER / files.CLIP)
    else:
        encoders = train_text(folder, log)
    if last < STAGES.index("latents"):
        return
    latents = encode_clips(coder, recipe.clips, folder / "latents.pt", log)
    if last < STAGES.index("mmdit"):
        return
    if stages == ["export"]:
        recipe = replace(recipe, schedule=replace(recipe.schedule, steps=0))
        decoder = {name: (loss, replace(schedule, steps=0)) for name, (loss, schedule) in decoder.items()}
    mmdit = train_mmdit(folder, log, encoders, latents, recipe)
    if last < STAGES.index("decoder"):
        return
    train_coder(coder, coder.decoder, decoder, folder, log)
    check_coder(coder, model.coder_name, model.least_round_trip, log)
    if last < STAGES.index("export"):
        return
    size = files.export(model, mmdit, coder, encoders, latents.scale)
    if size > files.MAX_BYTES:
        raise StageFailed(f"export: the files have {size} bytes, but at most {files.MAX_BYTES} are allowed")
    log.write(stage="export", bytes=size)
    try:
        final_gates(model, log)
    finally:
        shutil.copy(log.path, model.log_path)


def final_gates(model: files.Model, log: Log) -> None:
    """Judge held-out combinations from the files alone, in fp32."""
    networks = load(files.model_config(model))

    @cache
    def scored(cond_type: str, repeats: int) -> Score:
        video = load(files.model_config(files.VIDEO)) if cond_type == "t2i2v" else None
        got, _ = score(networks, cond_type, repeats, then=video)
        log.write(stage="export", **got.figures())
        return got

    for each in model.gates:
        value = getattr(scored(each.cond_type, each.repeats), each.figure) or 0.0
        gate(log, "export", f"{each.cond_type} {each.figure}", value, each.least)
