"""From prompts and sampling settings to the videos to make."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from opensora_launch.media.prompts import PromptEntry, check_cond_type, check_motion_score, cond_type_of, with_suffixes
from opensora_launch.plan.checks import count_problems
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.plan.rows import Guidance
from opensora_launch.request.compose import ConfigPoint
from opensora_launch.request.video_names import Nameable, video_names
from opensora_launch.schema.autoencoder import VaeKind
from opensora_launch.schema.config import RunConfig


@dataclass(frozen=True)
class RequestedVideos:
    """The videos of a run, and the lines of prompts.jsonl, one per prompt and point of a sweep."""

    videos: tuple[VideoRequest, ...]
    prompt_lines: tuple[dict[str, Any], ...]


def with_condition_types(entries: Sequence[PromptEntry], run: RunConfig) -> tuple[PromptEntry, ...]:
    """The prompts with their condition types.

    Without one, two references mean a loop from the first to the second, and an image that is made is the first frame.
    """

    def cond_type(entry: PromptEntry) -> str | None:
        if makes_image(entry, run):
            return "i2v_head"
        return "i2v_loop" if len(entry.refs) == 2 and not _chosen_cond_type(entry, run) else entry.settings.cond_type

    return tuple(replace(entry, settings=replace(entry.settings, cond_type=cond_type(entry))) for entry in entries)


def makes_image(entry: PromptEntry, run: RunConfig) -> bool:
    """Whether the image model makes the first frame of a prompt's videos."""
    return run.image.model is not None and not entry.refs and _chosen_cond_type(entry, run) in (None, "i2v_head")


def _chosen_cond_type(entry: PromptEntry, run: RunConfig) -> str | None:
    return entry.settings.cond_type or run.sampling.cond_type


def prompt_setting_problems(run: RunConfig) -> list[str]:
    """Lines about settings that prompts may also set for themselves, and that the plan would check too late."""
    scales = {"guidance": run.sampling.guidance, "guidance_img": run.sampling.guidance_img}
    wrong = [name for name, scale in scales.items() if not 0 <= scale < math.inf]
    problems = [f"sampling.{name}={scales[name]} must be a number of at least 0" for name in wrong]
    problems += count_problems(run.sampling)
    if run.model.mmdit.guidance_embed and run.sampling.negative_prompt:
        problems.append(f"{run.model.name} has one guidance row, so a negative prompt changes nothing: leave it out")
    for check, value in ((check_cond_type, run.sampling.cond_type), (check_motion_score, run.sampling.motion_score)):
        try:
            if value is not None:
                check(value)
        except ValueError as error:
            problems.append(f"sampling.{error}")
    return problems


def request_videos(
    entries: Sequence[PromptEntry], points: Sequence[ConfigPoint], template: str | None, chosen: range
) -> RequestedVideos:
    """The videos of every prompt at every point of a sweep. Prompt p of point k has the number k * len(entries) + p.

    `template` makes the names (video_names). prompts.jsonl has one line per number: the prompt, its source, its point
    and the values that the sweep chose there. Only the `chosen` prompts are made, as the whole list makes them.
    """
    prompts = [
        (position * len(entries) + entry.index, entry, point, _videos(entry, point.run))
        for position, point in enumerate(points)
        for entry in with_condition_types(entries, point.run)
    ]
    facts = [
        Nameable(index, sample, entry.name, entry.text, video.seed)
        for index, entry, _, videos in prompts
        for sample, video in enumerate(videos)
    ]
    names, made, lines = iter(video_names(template, facts)), list[VideoRequest](), []
    for index, entry, point, videos in prompts:
        named = [replace(video, name=next(names)) for video in videos]
        if entry.index in chosen:
            made += named
            lines.append(_line(index, entry, point, named))
    return RequestedVideos(tuple(made), tuple(lines))


def _line(index: int, entry: PromptEntry, point: ConfigPoint, videos: Sequence[VideoRequest]) -> dict[str, Any]:
    """The line of prompts.jsonl of a prompt at a point of a sweep, with its videos."""
    line = {"index": index, "text": entry.text, "refs": list(entry.refs), "source": entry.source}
    line |= {key: value for key in ("name", "refined", "refined_by") if (value := getattr(entry, key))}
    line |= {"settings": _own(entry), "seed": videos[0].seed, "videos": [video.name for video in videos]}
    if point.swept:  # all as overrides, sampling settings also as values
        keys = [text.partition("=")[0].lstrip("+") for text in point.swept]
        leaves = [key.removeprefix("sampling.") for key in keys if key.startswith("sampling.")]
        chosen = {leaf: getattr(point.run.sampling, leaf) for leaf in leaves}
        line |= {"point": point.number, "overrides": list(point.swept), "chosen": chosen}
    return line


def _videos(entry: PromptEntry, run: RunConfig) -> list[VideoRequest]:
    """The samples of a prompt, without names."""
    sampling = replace(run.sampling, **_own(entry))
    cond_type = cond_type_of(entry, sampling.cond_type)
    seed = secrets.randbelow(2**32) if sampling.seed is None else sampling.seed
    guidance = Guidance(
        num_steps=sampling.num_steps,
        text_scale=sampling.guidance,
        image_scale=sampling.guidance_img,
        text_osci=sampling.text_osci,
        image_osci=sampling.image_osci,
        temporal_osci=sampling.scale_temporal_osci and "i2v" in cond_type,
        distilled=run.model.mmdit.guidance_embed,
        guidance_until=sampling.guidance_until,
        reuse_every=sampling.reuse_every,
        reuse_from=sampling.reuse_from,
    )
    written = entry.refined or entry.text
    suffixed = with_suffixes(written, run.video.fps, sampling.motion_score)
    text = written if run.model.vae.kind is VaeKind.image else suffixed  # image models learned no suffixes
    return [
        VideoRequest(
            name="",
            prompt=entry.text,
            text=text,
            negative=sampling.negative_prompt,
            refs=entry.refs,
            cond_type=cond_type,
            seed=seed + sample,
            guidance=guidance,
            refined=entry.refined,
            image=makes_image(entry, run),
        )
        for sample in range(max(sampling.num_samples, 1))
    ]


def _own(entry: PromptEntry) -> dict[str, Any]:
    return {name: value for name, value in vars(entry.settings).items() if value is not None}
