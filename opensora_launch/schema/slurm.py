"""Options of a batch job on a cluster: the part of the schema under `launcher.slurm`."""

from enum import StrEnum

from opensora_launch.schema.settings import key, settings


class Starter(StrEnum):
    srun = "srun"  # one task per rank
    torchrun = "torchrun"  # one torchrun per node, started by srun


class GpuOption(StrEnum):
    """The option of sbatch that requests the GPUs."""

    gpus_per_node = "gpus_per_node"
    gres = "gres"
    none = "none"  # the site allocates whole nodes, or `extra` holds the option


class Container(StrEnum):
    none = "none"
    pyxis = "pyxis"  # srun --container-image (enroot)
    apptainer = "apptainer"


@settings
class SlurmConfig:
    """The batch job. The topology gives nodes and ranks; null leaves an option to the site's default."""

    job_name: str = key("opensora", "name of the job in squeue")
    partition: str | None = key(None, "partition")
    account: str | None = key(None, "account that is charged")
    qos: str | None = key(None, "quality of service")
    time: str | None = key(None, "limit, in Slurm's format: 90 (minutes), 2:00:00, 1-0; null: predicted if possible")
    gpus: GpuOption = key(GpuOption.gpus_per_node, "option of sbatch that asks for GPUs; none: whole nodes, or `extra`")
    gpu_type: str | None = key(None, "type of GPU in that option")
    cpus_per_rank: int = key(8, "cores of each rank")
    mem: str | None = key(None, "per node: 200G; 0: all memory of the node; null: predicted if possible")
    exclusive: bool = key(False, "share no node with other jobs")
    constraint: str | None = key(None, "features that nodes must have")
    switches: str | None = key(None, "number of switches that may join the nodes")
    reservation: str | None = key(None, "reservation")
    nodelist: str | None = key(None, "nodes to use")
    exclude: str | None = key(None, "nodes not to use")
    mail_user: str | None = key(None, "address for mails")
    mail_type: str | None = key(None, "events that send a mail: END,FAIL")
    dependency: str | None = key(None, "jobs to wait for: afterok:123")
    array: int = key(1, "number of array tasks, each of the topology's size; they share the videos")
    array_limit: int | None = key(None, "array tasks that run at the same time")
    requeue: bool = key(True, "after preemption, a lost node or the signal; false: exit with code 75")
    max_restarts: int = key(20, "restarts of a job")
    signal_lead_s: int = key(120, "time before the limit at which ranks write checkpoints")
    extra: list[str] = key([], "further options of sbatch: --comment=x")
    modules: list[str] = key([], "environment modules to load before the ranks start")
    setup: list[str] = key([], "shell lines to run after loading the modules")
    env: list[str] = key([], "variables of the job: NAME=VALUE")
    starter: Starter = key(Starter.srun, "srun: one task per rank; torchrun: one torchrun per node, started by srun")
    python: str | None = key(None, "of the ranks; null: the Python that submits the job; python3 in a container")
    container: Container = key(Container.none, "pyxis: srun --container-image (enroot); apptainer")
    image: str | None = key(None, "image of the container")
    mounts: list[str] = key([], "folders in the container: /host/path:/container/path")
    host_suffix: str = key("", "appended to the first node's name if a faster interface has its own host name: -ib0")
    head_address: str | None = key(None, "address of the first node; null: its name, then the address Slurm has of it")
    interface: str | None = key(None, "network interface for NCCL and gloo; null: they choose")
    connect_timeout_s: float = key(30.0, "in which the first node must answer the others")
