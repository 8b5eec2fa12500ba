"""The prompts of a run, and which of them cannot be made: one with a bad reference must not stop the others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from opensora_launch.errors import Problems
from opensora_launch.media.prompts import PromptEntry, cond_type_of
from opensora_launch.media.reference_files import ReferenceCheck, unreadable
from opensora_launch.request.compose import ConfigPoint
from opensora_launch.request.videos import RequestedVideos, makes_image, prompt_setting_problems, with_condition_types
from opensora_launch.schema.config import ModelConfig


@dataclass(frozen=True)
class PromptRows:
    """The prompts of a run at each point of its sweep.

    `reasons` are those of the prompts whose references cannot be used, by their number as in `request_videos`.
    """

    entries: Sequence[PromptEntry]
    points: Sequence[tuple[int, ConfigPoint]]
    reasons: Mapping[int, Sequence[str]]

    @property
    def none_is_good(self) -> bool:
        return len(self.reasons) == len(self.points) * len(self.entries)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(where it was written, reason) of each prompt that cannot be made."""
        sources = [entry.source for entry in self.entries]
        return [(sources[n % len(sources)], reason) for n, reasons in self.reasons.items() for reason in reasons]

    def refused(self, requested: RequestedVideos) -> dict[str, str]:
        """Why each video that cannot be made is left out, by its name."""
        lines = dict(enumerate(requested.prompt_lines))
        bad = {number: "; ".join(reasons) for number, reasons in self.reasons.items() if number in lines}
        return {video: reason for number, reason in bad.items() for video in lines[number]["videos"]}


def check_rows(
    entries: Sequence[PromptEntry], points: Sequence[tuple[int, ConfigPoint]], problems: Problems
) -> PromptRows:
    """Check the references of every prompt at every point.

    Adds to `problems` what is wrong with settings that prompts may also set for themselves.
    """
    reasons, check = dict[int, Sequence[str]](), ReferenceCheck(points[0][1].run.video.num_frames)
    for position, (_, point) in enumerate(points):
        if wrong := prompt_setting_problems(point.run):
            problems.add([*wrong, *unreadable(entries)])
            continue
        for entry in with_condition_types(entries, point.run):
            cond_type = cond_type_of(entry, point.run.sampling.cond_type)
            if makes_image(entry, point.run):
                continue
            if found := _not_encoded(cond_type, point.run.model) or check.problems(entry.refs, cond_type):
                reasons[position * len(entries) + entry.index] = found
    return PromptRows(entries, points, reasons)


def _not_encoded(cond_type: str, model: ModelConfig) -> list[str]:
    """A line if the model takes no references, or if its autoencoder cannot encode so many of their frames.

    33 or 65 are no multiple of 4.
    """
    if cond_type != "t2v" and not model.mmdit.cond_embed:
        return [f"cond_type={cond_type} is not possible with {model.name}, which takes no references: leave them out"]
    if model.vae.is_causal or not cond_type.startswith("v2v"):
        return []
    return [f"cond_type={cond_type} is not possible with the Video DC-AE: use i2v_head, or model=open_sora_v2"]


def bad_row_lines(bad: Iterable[tuple[str, str]]) -> list[str]:
    """One line per reason, with the places where it was found."""
    problems = Problems()
    for source, reason in bad:
        problems.add_at(source, reason)
    return problems.lines


def left_out_notes(lines: Sequence[str]) -> list[str]:
    """What the user is told about prompts that are left out."""
    return ["these prompts cannot be made, and the others are:", *(f"  - {line}" for line in lines)] if lines else []
