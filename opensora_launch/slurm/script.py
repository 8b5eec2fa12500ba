"""A batch job as text: what sbatch reads, and what it runs. Pure functions.

Values never reach a shell unquoted, and overrides do not reach one at all: a job made by the launcher starts its ranks
with the folder of an attempt, whose plan.json has everything. In a script to submit by hand they are "$@".
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from opensora_launch.errors import must_be_positive
from opensora_launch.plan.plan import Machine
from opensora_launch.schema.config import Device, TopologyConfig
from opensora_launch.schema.slurm import Container, GpuOption, SlurmConfig, Starter
from opensora_launch.slurm.body import BODY, CHECK

# Options of sbatch that have a key of the same name and need no conversion.
PLAIN = (
    "job_name", "partition", "account", "qos", "time", "mem", "constraint", "switches", "reservation", "nodelist",
    "exclude", "mail_user", "mail_type", "dependency",
)  # fmt: skip
PLAIN_WORD = re.compile(r"[A-Za-z0-9_./@%+-]+")
TIME_LIMIT = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ASSIGNMENT = re.compile(f"{VARIABLE_NAME.pattern}=")


@dataclass(frozen=True)
class SlurmJob:
    """What a script needs. `attempt` is the folder that the first task of the array starts with."""

    settings: SlurmConfig
    machine: Machine
    threads_per_rank: int
    attempt: Path
    python: str
    exports: Mapping[str, str] = field(default_factory=dict)  # variables that the environment profile sets
    unsets: Sequence[str] = ()  # and removes


def slurm_machine(topology: TopologyConfig, settings: SlurmConfig) -> tuple[Machine, list[str]]:
    """The machine that a job requests. Nothing is read from this host."""
    device = "cpu" if topology.device is Device.cpu else "cuda"
    ranks = topology.gpus_per_node
    problems = [] if ranks else ["launcher=slurm needs the number of ranks per node: topology=8gpu, topology=2x8, ..."]
    machine = Machine(device, topology.nodes, ranks or 1, settings.cpus_per_rank * (ranks or 1))
    return machine, problems + slurm_problems(settings, machine)


def slurm_problems(settings: SlurmConfig, machine: Machine) -> list[str]:
    """Every reason why no job can be made of these settings."""
    at_least = {"cpus_per_rank": 1, "array": 1, "array_limit": 1, "max_restarts": 0, "signal_lead_s": 0}
    problems = []
    for name, least in at_least.items():
        problems += must_be_positive(f"launcher.slurm.{name}", getattr(settings, name), least)
    if settings.connect_timeout_s <= 0:
        problems.append(f"launcher.slurm.connect_timeout_s={settings.connect_timeout_s} must be more than 0 seconds")
    lead_s, limit_s = settings.signal_lead_s, time_limit_s(settings.time or "")
    if limit_s is not None and 0 < limit_s <= lead_s:
        problems.append(
            f"launcher.slurm.time={settings.time} is {limit_s} s, but ranks are asked to stop signal_lead_s={lead_s} s "
            "before the limit, so they would stop at once: raise time, or lower signal_lead_s"
        )
    problems += assignment_problems("launcher.slurm.env", settings.env)
    for entry in settings.extra:
        if not entry.startswith("-"):
            problems.append(f"launcher.slurm.extra: {entry!r} is not an option of sbatch; write it like --comment=x")
    if settings.container is not Container.none and not settings.image:
        problems.append(f"launcher.slurm.container={settings.container.value} needs launcher.slurm.image=FILE_OR_NAME")
    if settings.gpu_type and (settings.gpus is GpuOption.none or machine.device == "cpu"):
        problems.append("launcher.slurm.gpu_type is set, but the job requests no GPUs: remove it, or request GPUs")
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.name != "setup" and any("\n" in text for text in (value if isinstance(value, list) else [str(value)])):
            problems.append(f"launcher.slurm.{item.name} contains a line break, which options of sbatch cannot")
    return problems


def assignment_problems(key: str, entries: Sequence[str]) -> list[str]:
    """A line for each entry of a key that is not an assignment to a variable."""
    return [f"{key}: {entry!r} is not NAME=VALUE" for entry in entries if not ASSIGNMENT.match(entry)]


def time_limit_s(text: str) -> int | None:
    """Seconds of a limit in one of Slurm's formats; None if it is in none, which sbatch reports, or has no end."""
    found = TIME_LIMIT.fullmatch(text)
    if not found:
        return None
    days, *parts = (int(part or 0) for part in found.groups())
    if found[1] is None and found[4] is None:  # the first number is minutes
        parts = [0, *parts]
    return days * 86_400 + parts[0] * 3600 + parts[1] * 60 + parts[2]


def job_script(job: SlurmJob) -> str:
    """The script that the launcher submits."""
    lines = [
        "# Made by opensora-launch. To make what is missing, submit this file again with sbatch.",
        f"attempt_made={shlex.quote(str(job.attempt))}",
        *_settings(job),
        *_environment(job),
        *(f"unset {name}" for name in job.unsets),
    ]
    return _whole(job, [], lines, '--attempt "$attempt_made"')


def hand_script(settings: SlurmConfig, about: str, *, nodes: int, ranks_per_node: int) -> str:
    """A script for slurm/. Its user edits the options, and gives prompts and overrides on sbatch's command line."""
    machine = Machine("cuda", nodes, ranks_per_node, ranks_per_node * settings.cpus_per_rank)
    job = SlurmJob(settings, machine, settings.cpus_per_rank, Path("slurm-%j"), settings.python or "python3")
    comment = ["", *(f"# {line}".rstrip() for line in about.splitlines())]
    lines = [
        "# Edit from here: how to start Python on a node, and what it needs.",
        *_settings(job, by_hand=True),
        *_environment(job),
    ]
    # All tasks of an array, and a requeued job, work on one run; this file holds the path of its folder.
    run_file = '"${SLURM_SUBMIT_DIR:-$PWD}/slurm-${me%_*}.run"'
    find = f'--run-file {run_file} --submitted "$submitted" --ranks-per-node "$ranks_per_node" -- launcher=slurm "$@"'
    return _whole(job, comment, lines, find, by_hand=True)


def sbatch_value(text: str) -> str:
    """Quote a value for a #SBATCH line: in double quotes, inside which only quotes and backslashes are special."""
    if re.fullmatch(r"[^\s\"'\\#]+", text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _words(words: Sequence[str]) -> str:
    """The elements of a bash array."""
    return " ".join(word if PLAIN_WORD.fullmatch(word) else _quoted(word) for word in words)


def _quoted(text: str) -> str:
    """Quote a value in single quotes, even if it needs none."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _options(job: SlurmJob, *, by_hand: bool) -> Iterator[str]:
    """The first lines, which sbatch reads."""
    yield "#!/bin/bash"
    for name, value in _option_values(job, by_hand):
        yield f"#SBATCH --{name}" + (f"={sbatch_value(value)}" if value is not None else "")
    for entry in job.settings.extra:
        name, equals, value = entry.partition("=")
        yield f"#SBATCH {name}{equals}{sbatch_value(value)}"


def _option_values(job: SlurmJob, by_hand: bool) -> Iterator[tuple[str, str | None]]:
    settings, ranks = job.settings, job.machine.gpus_per_node
    tasks = 1 if settings.starter is Starter.torchrun else ranks
    given = {name.replace("_", "-"): getattr(settings, name) for name in PLAIN}
    yield "job-name", given.pop("job-name")
    yield "nodes", str(job.machine.nodes)
    yield "ntasks-per-node", str(tasks)
    yield "cpus-per-task", str(settings.cpus_per_rank * ranks // tasks)
    if job.machine.device == "cuda" and settings.gpus is not GpuOption.none:
        count = f"{settings.gpu_type}:{ranks}" if settings.gpu_type else str(ranks)
        yield ("gres", f"gpu:{count}") if settings.gpus is GpuOption.gres else ("gpus-per-node", count)
    yield from ((name, value) for name, value in given.items() if value is not None)
    if settings.exclusive:
        yield "exclusive", None
    if settings.array > 1:
        limit = f"%{settings.array_limit}" if settings.array_limit else ""
        yield "array", f"0-{settings.array - 1}{limit}"
    yield ("requeue" if settings.requeue else "no-requeue"), None
    yield "signal", f"B:USR1@{settings.signal_lead_s}"
    yield "open-mode", "append"
    if by_hand:
        yield "output", f"slurm-%{'A_%a' if settings.array > 1 else 'j'}.log"
    else:
        task = ".%a" if settings.array > 1 else ""
        yield "output", f"{str(job.attempt / 'logs').replace('%', '%%')}/job{task}.log"


def _settings(job: SlurmJob, *, by_hand: bool = False) -> Iterator[str]:
    """The variables that the body reads."""
    settings, ranks = job.settings, job.machine.gpus_per_node
    mounts = ",".join(settings.mounts)
    inside = settings.python or "python3"
    container: Sequence[str] = ()
    if settings.container is Container.pyxis:
        container = [f"--container-image={settings.image}", *([f"--container-mounts={mounts}"] if mounts else [])]
        argv = [inside]
    elif settings.container is Container.apptainer:
        argv = ["apptainer", "exec", "--nv", *(["--bind", mounts] if mounts else []), str(settings.image), inside]
    else:
        argv = [job.python]
    yield f"python=({_words(argv)})"
    yield f"container=({_words(container)}) # options of srun"
    one_task_a_rank = by_hand and settings.starter is Starter.srun
    yield f"ranks_per_node=${{SLURM_NTASKS_PER_NODE:-{ranks}}}" if one_task_a_rank else f"ranks_per_node={ranks}"
    yield f"host_suffix={shlex.quote(settings.host_suffix)}"
    yield f"may_requeue={int(settings.requeue)} max_restarts={settings.max_restarts}"


def _environment(job: SlurmJob) -> Iterator[str]:
    settings = job.settings
    own = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "SLURM_EXPORT_ENV": "ALL", "PYTHONUNBUFFERED": "1"}
    own |= {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(job.threads_per_rank), **job.exports}
    own["CONNECT_TIMEOUT_S"] = f"{settings.connect_timeout_s:g}"
    if settings.interface:  # NCCL matches prefixes, after "=" whole names; gloo matches whole names
        own |= {"NCCL_SOCKET_IFNAME": f"={settings.interface}", "GLOO_SOCKET_IFNAME": settings.interface}
    given = dict(entry.split("=", 1) for entry in settings.env)
    yield from (f"export {name}={_quoted(value)}" for name, value in {**own, **given}.items())
    if settings.modules:
        yield f"module load {shlex.join(settings.modules)}"
    yield from settings.setup


def _whole(job: SlurmJob, comment: Sequence[str], lines: Sequence[str], find: str, *, by_hand: bool = False) -> str:
    """The script. `find` are the arguments that find the attempt."""
    head = "\n".join([*_options(job, by_hand=by_hand), *comment, "", CHECK, "", *lines])
    return f"{head}\n\n{BODY.replace('FIND_ATTEMPT', find).replace('START_RANKS', _start(job.settings))}"


def _start(settings: SlurmConfig) -> str:
    """The line that starts the ranks."""
    worker = '-m opensora_launch.worker --attempt "$attempt"'
    if settings.starter is Starter.srun:
        return f'srun "${{step[@]}}" "${{python[@]}}" {worker} &'
    agent = (
        '-m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$ranks_per_node" '
        '--node-rank="$SLURM_NODEID" --master-addr="${HEAD_ADDRESS:-$MASTER_ADDR}" --master-port="$MASTER_PORT"'
    )
    # Expanded on each node: SLURM_NODEID is its own. The rest comes as variables and arguments.
    return (
        'unset "${!PET_@}" LOGLEVEL PYTHON_EXEC # torchrun would take them for its options\n'
        "  export attempt ranks_per_node\n"
        f'  # shellcheck disable=SC2016\n  srun "${{step[@]}}" bash -c \'exec "$@" {agent} \\\n'
        f'    {worker}\' bash "${{python[@]}}" &'
    )
