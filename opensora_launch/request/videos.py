"""From prompts and sampling settings to the videos to make."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from opensora_launch.media.prompts import (
    PromptEntry,
    check_cond_type,
    check_motion_score,
    cond_type_of,
    with_suffixes,
)
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
    problems = [
        f"sampling.{name}={scale} must be a number of at least 0"
        for name, scale in scales.items()
        if not (math.isfinite(scale) and scale >= 0)
    ]
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
    entries: Sequence[PromptEntry],
    points: Sequence[tuple[int, ConfigPoint]],
    *,
    template: str | None = None,
    chosen: range | None = None,
) -> RequestedVideos:
    """The videos of every prompt at every point of a sweep. Prompt p of point k has the number k * len(entries) + p.

    `template` makes the names (video_names). prompts.jsonl has one line per number: the prompt, its source, its point
    and the values that the sweep chose there. With `chosen`, only these prompts are made, as the whole list makes them.
    """
    prompts = [
        _RequestedPrompt(entry, position * len(entries) + entry.index, number, point)
        for position, (number, point) in enumerate(points)
        for entry in with_condition_types(entries, point.run)
    ]
    made = [_videos(prompt) for prompt in prompts]
    facts = [
        Nameable(prompt.index, sample, prompt.entry.name, prompt.entry.text, video.seed)
        for prompt, videos in zip(prompts, made, strict=True)
        for sample, video in enumerate(videos)
    ]
    names = iter(video_names(template, facts))
    named = [[replace(video, name=next(names)) for video in videos] for videos in made]
    kept = [(p, v) for p, v in zip(prompts, named, strict=True) if chosen is None or p.entry.index in chosen]
    return RequestedVideos(tuple(video for _, videos in kept for video in videos), tuple(_line(*one) for one in kept))


@dataclass(frozen=True)
class _RequestedPrompt:
    """A prompt at a point of a sweep, and the point's number."""

    entry: PromptEntry
    index: int
    number: int
    point: ConfigPoint


def _line(prompt: _RequestedPrompt, videos: Sequence[VideoRequest]) -> dict[str, Any]:
    """The line of prompts.jsonl of a prompt with its videos."""
    entry = prompt.entry
    line = {"index": prompt.index, "text": entry.text, "refs": list(entry.refs), "source": entry.source}
    line |= {"name": entry.name} if entry.name else {}
    line |= {"refined": entry.refined} if entry.refined else {}
    line |= {"refined_by": entry.refined_by} if entry.refined_by else {}
    line |= {"settings": {k: v for k, v in asdict(entry.settings).items() if v is not None}}
    line |= {"seed": videos[0].seed, "videos": [video.name for video in videos]}
    return line | (_choice_of_point(prompt.number, prompt.point) if prompt.point.swept else {})


def _choice_of_point(number: int, point: ConfigPoint) -> dict[str, Any]:
    """What a sweep chose for a line of prompts.jsonl: all as overrides, sampling settings also as values."""
    keys = [text.partition("=")[0].lstrip("+") for text in point.swept]
    leaves = [key.removeprefix("sampling.") for key in keys if key.startswith("sampling.")]
    chosen = {leaf: getattr(point.run.sampling, leaf) for leaf in leaves}
    return {"point": number, "overrides": list(point.swept), "chosen": chosen}


def _samples(entry: PromptEntry, run: RunConfig) -> int:
    return entry.settings.num_samples or run.sampling.num_samples


def _videos(prompt: _RequestedPrompt) -> list[VideoRequest]:
    """The samples of a prompt, without names."""
    entry, run = prompt.entry, prompt.point.run
    own, sampling = entry.settings, run.sampling
    cond_type = cond_type_of(entry, sampling.cond_type)
    seed = _first(own.seed, sampling.seed)
    seed = secrets.randbelow(2**32) if seed is None else seed
    guidance = Guidance(
        num_steps=_first(own.num_steps, sampling.num_steps),
        text_scale=_first(own.guidance, sampling.guidance),
        image_scale=_first(own.guidance_img, sampling.guidance_img),
        text_osci=sampling.text_osci,
        image_osci=sampling.image_osci,
        temporal_osci=sampling.scale_temporal_osci and "i2v" in cond_type,
        distilled=run.model.mmdit.guidance_embed,
    )
    written = entry.refined or entry.text
    suffixed = with_suffixes(written, run.video.fps, _first(own.motion_score, sampling.motion_score))
    text = written if run.model.vae.kind is VaeKind.image else suffixed  # image models learned no suffixes
    return [
        VideoRequest(
            name="",
            prompt=entry.text,
            text=text,
            negative=_first(own.negative_prompt, sampling.negative_prompt),
            refs=entry.refs,
            cond_type=cond_type,
            seed=seed + sample,
            guidance=guidance,
            refined=entry.refined,
            image=makes_image(entry, run),
        )
        for sample in range(max(_samples(entry, run), 1))
    ]


def _first(own: Any, run: Any) -> Any:
    return run if own is None else own
