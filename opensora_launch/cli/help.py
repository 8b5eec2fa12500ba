"""`--help`: verbs, flags, groups with their choices, keys with their defaults. Reads the YAML files, not Hydra."""

from collections.abc import Iterator, Sequence
from typing import Any

from opensora_launch import __version__
from opensora_launch.request.catalogue import Group, Key, as_text, config_folder, groups, keys
from opensora_launch.request.flags import (
    BENCH_FLAGS,
    COMPARE_FLAGS,
    DOCTOR_FLAGS,
    ESTIMATE_FLAGS,
    GENERATE_FLAGS,
    PLAN_FLAGS,
    REPORT_FLAGS,
    TOP_FLAGS,
    VERIFY_FLAGS,
    Flag,
)

ABOUT = {
    "generate": "make videos from prompts, on one GPU or many",
    "plan": "predict time and memory of every layout, on any card; needs no GPU",
    "verify": "compare N ranks with one, and with stored tensors",
    "bench": "measure how it scales: a sweep over counts of GPUs, ending in one report",
    "compare": "two runs or sweeps side by side; exit code 1 where the second is slower",
    "top": "watch a run: each rank's step, GPU, memory, power",
    "report": "show where each rank's time went, from the files of a run",
    "status": "show what a run is doing: job, ranks, nodes, logs, last error",
    "cancel": "end all that works on a run",
    "doctor": "look whether this machine is ready: one line a finding, with the fix",
    "estimate": "FLOPs, GPU-hours, energy, cost; fleets, machines, and which card to buy",
}
EXAMPLES = """\
opensora-launch generate --prompt "raining, sea" video=256px topology=2gpu
opensora-launch generate --prompts list.csv video=768px topology=8gpu
opensora-launch generate --prompt "waves" --ref beach.png sampling.num_steps=30
opensora-launch generate --prompt "a cat's eye" video=custom video.width_px=512 video.height_px=320 topology=cpu2
opensora-launch generate --prompt "waves" dry_run=true             the plan and the command, nothing started
opensora-launch generate --prompt "waves" -m sampling.seed=1,2,3   a sweep; one run, as only seeds differ
opensora-launch generate --resume runs/20260131-120000 topology=4gpu
opensora-launch verify topology=cpu4 layout.ring=2                 the same video on 4 ranks and on one?"""


def main_help() -> str:
    """What `opensora-launch --help` prints."""
    verbs = _columns((verb, about) for verb, about in ABOUT.items())
    return f"""\
opensora-launch {__version__}: video with Open-Sora on every GPU you own, and where each GPU's time went.

usage: opensora-launch VERB [FLAGS] [GROUP=CHOICE ...] [KEY=VALUE ...]

verbs (opensora-launch VERB --help):
{verbs}

examples:
{_indent(EXAMPLES)}

config groups of generate, as GROUP=CHOICE (* is the default):
{_groups()}

All keys with their defaults: opensora-launch generate --help.
Other flags: --version; --shell-completion bash prints a completion script.
Exit codes: 0 done, 1 failure, 2 your mistake, 75 stopped and stored, 130 Ctrl-C."""


def verb_help(verb: str) -> str:
    """What `opensora-launch VERB --help` prints."""
    known = {
        "generate": _generate_help,
        "verify": _verify_help,
        "report": _report_help,
        "doctor": _doctor_help,
        "estimate": _estimate_help,
    }
    known["plan"] = _plan_help
    known |= {"bench": _bench_help, "compare": _compare_help, "top": _top_help}
    return known.get(verb, lambda: _run_help(verb))()


def _run_help(verb: str) -> str:
    return f"""\
usage: opensora-launch {verb} RUN

{ABOUT[verb][0].upper()}{ABOUT[verb][1:]}. For runs of torchrun and of Slurm alike, from the run's folder."""


def _generate_help() -> str:
    return f"""\
usage: opensora-launch generate --prompt TEXT [FLAGS] [GROUP=CHOICE ...] [KEY=VALUE ...]

Make a video of each prompt, under runs/. Text and paths are flags; every setting is a Hydra override.

flags:
{_flags(GENERATE_FLAGS)}

groups, as GROUP=CHOICE (* is the default):
{_groups()}
Without model=..., the checkpoint is used where it is; else demo or tiny.

keys, as KEY=VALUE, with the defaults of the default choices:
{_keys()}

examples:
{_indent(EXAMPLES)}"""


def _plan_help() -> str:
    return f"""\
usage: opensora-launch plan hardware=CARD topology=CHOICE video=CHOICE [FLAGS] [KEY=VALUE ...]

Predict every layout of a topology on a card: seconds by phase, efficiency, memory, and why the others are not chosen.
Runs anywhere; the weights and the GPUs need not be here. Groups and keys are those of generate.

flags:
{_flags(PLAN_FLAGS)}"""


def _bench_help() -> str:
    return f"""\
usage: opensora-launch bench gpus=[1,2,4] [repeats=3] [warmup=1] [scaling=strong|weak] [GROUP=CHOICE ...] [KEY=VALUE]
       opensora-launch bench --resume FOLDER

Run every point of a sweep alone, in rounds that take turns, and write one report over all of them. Counts may be
nodes x GPUs (2x8). Groups and keys are those of generate; several values (video=256px,768px) are several lines.

flags:
{_flags(BENCH_FLAGS)}"""


def _compare_help() -> str:
    return f"""\
usage: opensora-launch compare A B [--threshold PERCENT]

Print the times of two runs or two sweeps side by side. Exit code 1 where a time of B is above A's by more than the
threshold, and beyond the spread where there are repeats; 2 where they did different work.

flags:
{_flags(COMPARE_FLAGS)}"""


def _top_help() -> str:
    return f"""\
usage: opensora-launch top RUN [--once]

Show what each rank of a run does now, with its GPU's use, memory and power. Without a terminal it prints now and then.

flags:
{_flags(TOP_FLAGS)}"""


def _report_help() -> str:
    return f"""\
usage: opensora-launch report RUN [--baseline RUN]
       opensora-launch report FILE.json [--out FOLDER]

Write the reports of a run (report.json, .md, .html) from its telemetry, and print the summary. FILE.json are published
figures: their efficiency is worked out from their seconds.

flags:
{_flags(REPORT_FLAGS)}"""


def _verify_help() -> str:
    return f"""\
usage: opensora-launch verify [--case FILE ...] [GROUP=CHOICE ...] [KEY=VALUE ...]

Run stored cases, or a small video of the current model, on a topology and layout and on one rank. Prints a line per
compared tensor; exit code 0 when all agree, 1 otherwise. Groups and keys are those of generate.

flags:
{_flags(VERIFY_FLAGS)}"""


def _doctor_help() -> str:
    return f"""\
usage: opensora-launch doctor [FLAGS] [GROUP=CHOICE ...] [KEY=VALUE ...]

Examine this machine, or every node of a Slurm allocation, for a run with these settings: driver and builds, memory,
disk, limits, links, weight files, environment (docs/doctor.md). A line a finding: ok, warn, fail. Exit code 1 where
something fails. Groups and keys are those of generate.

flags:
{_flags(DOCTOR_FLAGS)}"""


def _estimate_help() -> str:
    return f"""\
usage: opensora-launch estimate [video|fleet|breakeven|card|build] [FLAGS] [GROUP=CHOICE ...] [KEY=VALUE ...]

Predictions for a model, a video and cards; no GPU is needed (docs/estimate.md). Each number shows its arithmetic.
  video      FLOPs, GPU-hours, kWh and cost of a video and of a minute of video
  fleet      GPUs for estimate.minutes_per_day at a peak factor and utilisation
  breakeven  what training took, and after how many videos inference has used as much
  card       which cards run this video: memory first, then by estimate.card_order
  build      power, supply, cooling of a machine, and purchase against cloud
estimate=sora, estimate=dit_xl and estimate=guide_4090 hold the figures of published documents.

flags:
{_flags(ESTIMATE_FLAGS)}"""


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _columns(rows: Iterator[tuple[str, str]]) -> str:
    listed = list(rows)
    width = max(len(left) for left, _ in listed)
    return "\n".join(f"  {left:<{width}}  {right}".rstrip() for left, right in listed)


def _flags(flags: Sequence[Flag]) -> str:
    return _columns((", ".join(flag.names) + (f" {flag.value}" if flag.value else ""), _about(flag)) for flag in flags)


def _about(flag: Flag) -> str:
    return flag.about + (f": {', '.join(flag.kinds)}" if flag.kinds else "")


def _groups() -> str:
    return "\n".join(f"  {group.name}\n{_choices(group)}" for group in groups())


def _choices(group: Group) -> str:
    return _indent(_columns((f"{c.name}{'*' if c.name == group.default else ''}", c.about) for c in group.choices))


def _keys() -> str:
    chosen = _default_values()
    return _columns((f"{key.path}={as_text(chosen.get(key.path, key.default))}", _kind(key)) for key in keys())


def _kind(key: Key) -> str:
    return key.kind.replace("one of ", "") if key.allowed else key.kind


def _default_values() -> dict[str, Any]:
    """Dotted key -> value, of the YAML files of the default choices."""
    import yaml

    found: dict[str, Any] = {}
    for group in groups():
        file = config_folder() / group.name / f"{group.default}.yaml"
        found |= dict(_flat(yaml.safe_load(file.read_text(encoding="utf-8")) or {}, f"{group.name}."))
    return found


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
