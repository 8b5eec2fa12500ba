"""The prompts of a run, and which of them cannot be made: one with a bad reference must not stop the others."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from opensora_launch.errors import Problems, UserError
from opensora_launch.media.prompts import PromptEntry, PromptSettings, cond_type_of, read_prompts
from opensora_launch.media.reference_files import ReferenceCheck, unreadable
from opensora_launch.request.compose import ConfigPoint
from opensora_launch.request.flags import Parsed
from opensora_launch.request.videos import RequestedVideos, makes_image, prompt_setting_problems, with_condition_types
from opensora_launch.schema.config import ModelConfig

NO_PROMPT = 'no prompt: give one, as in: opensora-launch generate --prompt "raining, sea"; or a file by --prompts'


@dataclass(frozen=True)
class PromptRows:
    """The prompts of a run at each point of its sweep.

    `entries` is the whole list, of which the `chosen` ones are made. `reasons` are those of the prompts whose
    references cannot be used, by their number as in `request_videos`.
    """

    entries: Sequence[PromptEntry]
    chosen: range
    points: Sequence[ConfigPoint]
    reasons: Mapping[int, Sequence[str]]

    @property
    def good(self) -> set[int]:
        """The numbers in the list of the prompts that can be made at a point at least."""
        every = {(position, index) for position in range(len(self.points)) for index in self.chosen}
        return {index for position, index in every if position * len(self.entries) + index not in self.reasons}

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(where it was written, reason) of each prompt that cannot be made."""
        sources = [entry.source for entry in self.entries]
        return [(sources[n % len(sources)], reason) for n, reasons in self.reasons.items() for reason in reasons]

    def refused(self, requested: RequestedVideos) -> dict[str, str]:
        """Why each video that cannot be made is left out, by its name."""
        bad = [line for line in requested.prompt_lines if line["index"] in self.reasons]
        return {video: "; ".join(self.reasons[line["index"]]) for line in bad for video in line["videos"]}


def check_rows(
    entries: Sequence[PromptEntry], chosen: range, points: Sequence[ConfigPoint], problems: Problems
) -> PromptRows:
    """Check the references of every chosen prompt at every point. Adds to `problems` what is wrong with settings."""
    reasons, check = dict[int, Sequence[str]](), ReferenceCheck(points[0].run.video.num_frames)
    for position, point in enumerate(points):
        if wrong := prompt_setting_problems(point.run):
            problems.add([*wrong, *unreadable(entries[chosen.start : chosen.stop])])
            continue
        for entry in with_condition_types(entries[chosen.start : chosen.stop], point.run):
            cond_type = cond_type_of(entry, point.run.sampling.cond_type)
            if makes_image(entry, point.run):
                continue
            if found := _not_encoded(cond_type, point.run.model) or check.problems(entry.refs, cond_type):
                reasons[position * len(entries) + entry.index] = found
    return PromptRows(entries, chosen, points, reasons)


def read_list(parsed: Parsed, problems: Problems, *, dry_run: bool) -> tuple[tuple[PromptEntry, ...], range]:
    """The whole list of prompts of a command line, and which of them to make. A dry run needs none."""
    texts, files = parsed.all("--prompt"), parsed.paths("--prompts")
    if not texts and not files:
        if dry_run:
            return (PromptEntry(0, "(no prompt given)", (), PromptSettings(), "dry_run=true"),), range(1)
        problems.add([NO_PROMPT])
        return (), range(0)
    wrong = len(problems.lines)
    entries = read_prompts(texts, files, parsed.all("--ref"), problems)
    chosen = range(len(entries))
    if (parsed.has("--start") or parsed.has("--end")) and len(problems.lines) == wrong:
        with problems.collect():
            chosen = _chosen(parsed.one("--start"), parsed.one("--end"), len(entries))
    return entries, chosen


def _chosen(start: str | None, end: str | None, count: int) -> range:
    """The slice of a list that --start and --end choose. Raises UserError if it is not within the list's `count`."""
    ends = {"--start": start, "--end": end}
    numbers = [re.fullmatch("[0-9]{1,18}", text) for text in ends.values() if text is not None]
    found = range(int(start or 0), count if end is None else int(end)) if all(numbers) else range(0)
    if found and found.stop <= count:
        return found
    said = " ".join(f"{flag} {text}" for flag, text in ends.items() if text is not None)
    has = f"{count} prompts, numbered from 0 to {count - 1}" if count > 1 else "1 prompt, number 0"
    raise UserError(
        f"{said}: the list has {has}; --start must be the number of a prompt, and --end a larger one, at most {count}"
    )


def _not_encoded(cond_type: str, model: ModelConfig) -> list[str]:
    """A line if the model takes no references, or its autoencoder cannot encode 33 or 65 frames: no multiples of 4."""
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
