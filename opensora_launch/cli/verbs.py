"""Every verb with its flags and its help. `VERB_verb` of `opensora_launch/cli/VERB.py` does what it says."""

from dataclasses import dataclass

from opensora_launch.request.flags import CONFIG_DIR, GENERATE_FLAGS, HELP, PROMPTS, SETTINGS_HELP, Flag

SETTINGS = "[GROUP=CHOICE ...] [KEY=VALUE ...]"
RUN = "RUN is a folder; latest is the newest run in runs/, FOLDER/latest that of another folder."
AS_GENERATE = "Groups and keys are those of generate: opensora-launch generate --help."
OF_SETTINGS = (CONFIG_DIR, SETTINGS_HELP)  # flags of verbs that take groups and keys
JSON = Flag(("--json",), "", "Print one JSON document.")


@dataclass(frozen=True)
class Verb:
    """`about` is its line in the list of verbs; `text` stands between usage and flags in its own help."""

    about: str
    usage: tuple[str, ...]  # what follows the verb
    text: str
    flags: tuple[Flag, ...] = (HELP,)
    settings: bool = False  # whether it takes groups and keys
    module: str = ""  # of cli/; empty: that of its name, which must not hide a built-in of Python
    works: bool = False  # whether it does more than print: then output that cannot be written is no failure


VERBS = {
    "generate": Verb(
        "Make videos from prompts, on one GPU or many.",
        (f"--prompt TEXT [FLAGS] {SETTINGS}",),
        "Make a video of each prompt, in a new folder under runs/. Text and paths are flags; every setting is a Hydra "
        "override.",
        GENERATE_FLAGS,
        settings=True,
        works=True,
    ),
    "plan": Verb(
        "Predict time and memory of every layout, on any card. Needs no GPU.",
        (
            "hardware=CARD topology=CHOICE video=CHOICE [FLAGS] [KEY=VALUE ...]",
            "hardware=CARD gpus=[1,2,4,8] video=CHOICE [FLAGS] [KEY=VALUE ...]",
        ),
        "Predict every layout of a topology on a card: seconds, efficiency, memory, and which one generate takes. With "
        "gpus=, predict the best layout of each count; a count may be nodes x GPUs (2x8). Needs neither weight files "
        f"nor GPUs. estimate.usd_per_gpu_hour=2.5 adds the rent. {AS_GENERATE}",
        (
            Flag(("--videos",), "N", "Number of videos to make [1]."),
            Flag(("--wide",), "", "Show each phase, and why each layout and placement is not chosen."),
            JSON,
            Flag(("--plot",), "FILE", "Draw time, memory and roofline: .svg, .png or .pdf. Needs matplotlib."),
            *OF_SETTINGS,
        ),
        settings=True,
    ),
    "verify": Verb(
        "Compare N ranks with one rank, and with stored tensors.",
        (f"[--case FILE ...] {SETTINGS}",),
        "Run stored cases, or a small video of the current model, on a layout and on one rank. Prints one line per "
        f"compared tensor. Exit code 0 if all agree, else 1. {AS_GENERATE}",
        (
            Flag(
                ("--case",),
                "FILE",
                "Stored case (docs/verify.md). Without one, the current model is checked. May be repeated.",
                repeats=True,
            ),
            *OF_SETTINGS,
        ),
        settings=True,
        works=True,
    ),
    "bench": Verb(
        "Measure scaling: a sweep over counts of GPUs, with one report.",
        ("gpus=[1,2,4] [repeats=3] [warmup=1] [scaling=strong|weak] [GROUP=CHOICE ...] [KEY=VALUE]", "--resume FOLDER"),
        "Run every point of a sweep alone, several times in alternating order, and write one report on all of them. A "
        f"count may be nodes x GPUs (2x8). Several values (video=256px,768px) give several lines. {AS_GENERATE}",
        (
            Flag(("--prompt",), "TEXT", "What the videos show; the times do not depend on it.", repeats=True),
            PROMPTS,
            Flag(("--output",), "DIR", "The sweep's folder: new or empty [a new one in runs/]."),
            Flag(("--resume",), "FOLDER", "Continue a sweep that was interrupted."),
            *OF_SETTINGS,
        ),
        settings=True,
        works=True,
    ),
    "compare": Verb(
        "Compare two runs or sweeps. Exit code 1 if the second is slower.",
        ("A B [--threshold PERCENT] [--html FILE]",),
        "Print the times of two runs or two sweeps side by side. Exit code 1 if a time of B is above A's by more than "
        f"the threshold and, with repeats, beyond their spread; 2 if the two did different work. {RUN}",
        (
            Flag(("--threshold",), "PERCENT", "Allowed slowdown of B in percent before exit code 1 [5]."),
            Flag(("--html",), "FILE", "Also write the comparison as a page: changes, settings, timelines."),
            HELP,
        ),
    ),
    "top": Verb(
        "Watch a run: step, GPU use, memory and power of each rank.",
        ("RUN [--once]",),
        "Show what each rank of a run does now, with the use, memory and power of its GPU. Without a terminal it "
        f"prints a table every 30 seconds. {RUN}",
        (Flag(("--once",), "", "Print the table once and exit."), HELP),
    ),
    "report": Verb(
        "Show where each rank's time went, from the files of a run.",
        ("RUN [--baseline RUN]", "FILE.json [--out FOLDER]"),
        "Write the reports of a run or sweep (report.json, .md, .html) from its telemetry, and print a summary. "
        f"FILE.json holds published figures: the report computes their efficiency from their seconds. {RUN}",
        (
            Flag(("--baseline",), "RUN", "Run to compare with."),
            Flag(("--usd-per-gpu-hour",), "X", "Price of a GPU-hour in US dollars, for the cost per video."),
            Flag(("--usd-per-kwh",), "X", "Price of a kWh in US dollars."),
            Flag(("--out",), "FOLDER", "Output folder for the report on published figures [next to the input file]."),
            HELP,
        ),
        works=True,
    ),
    "status": Verb(
        "Show the state of a run: job, ranks, nodes, logs, last error.",
        ("RUN",),
        "Show the state of a run from its folder and, for a batch job, from Slurm: job, ranks, nodes, logs, time left, "
        f"last error. {RUN}",
    ),
    "list": Verb(
        "List all runs of a folder: state, videos, time, efficiency, job.",
        ("[FOLDER]",),
        "Print one line per run of a folder [runs], and per run of its sweeps: its name, what it does or how it ended, "
        "videos done, when it began, how long it worked, its efficiency, and the id of its last job. Asks Slurm once "
        "about all jobs.",
        module="list_runs",
    ),
    "open": Verb(
        "Open the report of a run in the browser.",
        ("[RUN]",),
        f"Open the report of a run or sweep [latest] in the browser, and print its path. {RUN}",
        module="open_report",
    ),
    "cancel": Verb(
        "Stop everything that works on a run.",
        ("RUN",),
        "Stop everything that works on a run: its Slurm job, or its launcher and ranks on this host. Exit code 1 if "
        f"something cannot be stopped from here. {RUN}",
        works=True,
    ),
    "doctor": Verb(
        "Check this machine. Prints one line per finding, with the fix.",
        (f"[FLAGS] {SETTINGS}",),
        "Check this machine, or every node of a Slurm allocation, for a run with these settings: driver and builds, "
        "memory, disk, limits, links, weight files, environment (docs/doctor.md). Prints one line per finding: ok, "
        f"warn or fail. Exit code 1 if anything fails. {AS_GENERATE}",
        (
            Flag(("--quick",), "", "Check only what generate checks: environment, memory, disk."),
            Flag(
                ("--no-ranks",), "", "Start no ranks: measure no bandwidth, and do not test that each sees its own GPU."
            ),
            JSON,
            Flag(("--plot",), "FILE", "Draw free memory and bandwidth: .svg; .png and .pdf need matplotlib."),
            Flag(("--here",), "", "In a Slurm job: check only this node, and print one line of JSON per finding."),
            *OF_SETTINGS,
        ),
        settings=True,
    ),
    "estimate": Verb(
        "Estimate FLOPs, GPU-hours, energy and cost; fleets, machines, cards to buy.",
        (f"[video|fleet|breakeven|card|build] [FLAGS] {SETTINGS}",),
        "Estimate a video, a fleet or a machine (docs/estimate.md). Needs no GPU. Each number shows its arithmetic.\n"
        "  video      FLOPs, GPU-hours, kWh and cost of a video and of a minute of video\n"
        "  fleet      GPUs for estimate.minutes_per_day at a peak factor and utilisation\n"
        "  breakeven  FLOPs of training, and the number of videos whose inference takes as many\n"
        "  card       cards that run this video: by memory, then by estimate.card_order\n"
        "  build      power, supply and cooling of a machine, and buying against renting\n"
        f"estimate=sora, estimate=dit_xl and estimate=guide_4090 hold figures of published documents. {AS_GENERATE}",
        (JSON, Flag(("--plot",), "FILE", "Draw bars: .svg; .png and .pdf need matplotlib."), *OF_SETTINGS),
        settings=True,
    ),
}
