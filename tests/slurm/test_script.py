"""Batch scripts: golden files, sound for bash and shellcheck, with values that would break either."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from opensora_launch.plan.plan import Machine
from opensora_launch.schema.config import Device, TopologyConfig
from opensora_launch.schema.slurm import Container, GpuOption, SlurmConfig, Starter
from opensora_launch.slurm.hand_scripts import hand_scripts
from opensora_launch.slurm.script import SlurmJob, job_script, sbatch_value, slurm_machine, slurm_problems, time_limit_s

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
HOSTILE = 'it\'s "50%" $HOME `ls` #1 é'
JOB = SlurmJob(
    SlurmConfig(), Machine("cuda", 2, 8, 64), 8, Path("/runs/20260131-120000/attempts/0"), "/venv/bin/python"
)
FULL = replace(
    JOB,
    settings=SlurmConfig(
        partition="gpu", account="lab", qos="high", time="1-0", gpus=GpuOption.gres, gpu_type="h200", mem="0",
        exclusive=True, constraint="ib&h200", switches="1@10", reservation="r", nodelist="n[1-4]", exclude="n3",
        mail_user="a@b.c", mail_type="END", dependency="afterok:1", array=3, array_limit=2, requeue=False,
        extra=["--comment=" + HOSTILE, "--oversubscribe"], modules=["cuda/12.4", "gcc"], setup=["ulimit -c 0"],
        env=["NCCL_DEBUG=INFO", "TEXT=" + HOSTILE], host_suffix="-ib0", interface="ib0", max_restarts=3,
    ),
    attempt=Path("/runs of me") / HOSTILE / "attempts/0",
    exports={"NCCL_DEBUG": "WARN"},
    unsets=("CUDA_LAUNCH_BLOCKING",),
)  # fmt: skip


def with_settings(**settings: object) -> str:
    return job_script(replace(JOB, settings=replace(SlurmConfig(), **settings)))  # type: ignore[arg-type]


SCRIPTS = {
    "slurm": job_script(JOB),
    "full": job_script(FULL),
    "torchrun": with_settings(starter=Starter.torchrun),
    "pyxis": with_settings(container=Container.pyxis, image="docker://a#b:1", mounts=["/a:/a", "/b:/b"]),
    "apptainer": with_settings(container=Container.apptainer, image="/my images/a.sif", starter=Starter.torchrun),
    **hand_scripts(),
}


def golden(path: Path, text: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", hand_scripts())
def test_the_scripts_of_the_slurm_folder(name: str, request: pytest.FixtureRequest) -> None:
    golden(ROOT / "slurm" / name, hand_scripts()[name], request)


@pytest.mark.parametrize("name", ["slurm", "full"])
def test_the_scripts_of_the_launcher(name: str, request: pytest.FixtureRequest) -> None:
    golden(GOLDEN / f"{name}.sbatch", SCRIPTS[name], request)


def test_there_are_no_other_scripts() -> None:
    assert {p.name for p in (ROOT / "slurm").iterdir()} == set(hand_scripts())


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_them(name: str, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(SCRIPTS[name])
    done = subprocess.run(["bash", "-n", tmp_path / "job.sh"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str, tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    (tmp_path / "job.sh").write_text(SCRIPTS[name])
    done = subprocess.run([shellcheck, tmp_path / "job.sh"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_values_come_out_of_the_script_as_they_were(tmp_path: Path) -> None:
    """Run its head: everything up to the part that is the same in every script."""
    head = SCRIPTS["full"].partition("# ---- identical")[0].replace("module load", ": module load")
    script = tmp_path / "head.sh"
    script.write_text(head + '\nprintf "%s\\0" "$attempt_made" "$TEXT" "$NCCL_DEBUG" "$NCCL_SOCKET_IFNAME"\n')
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == [str(FULL.attempt), HOSTILE, "INFO", "=ib0"]


def test_sbatch_reads_a_value_to_its_end() -> None:
    assert sbatch_value("a b#c'd\"e\\f") == '"a b#c\'d\\"e\\\\f"'
    assert sbatch_value("gpu:h200:8") == "gpu:h200:8"


def test_gpus_cpus_and_tasks() -> None:
    assert "--ntasks-per-node=8\n#SBATCH --cpus-per-task=8\n#SBATCH --gpus-per-node=8\n" in SCRIPTS["slurm"]
    assert "--ntasks-per-node=1\n#SBATCH --cpus-per-task=64\n#SBATCH --gpus-per-node=8\n" in SCRIPTS["torchrun"]
    assert "#SBATCH --gres=gpu:h200:8\n" in SCRIPTS["full"]
    on_cpus = job_script(replace(JOB, machine=Machine("cpu", 1, 2, 16)))
    assert "gpu" not in on_cpus.partition("# ----")[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"array": 0}, "launcher.slurm.array=0 must be at least 1"),
        ({"env": ["1=2"]}, "'1=2' is not NAME=VALUE"),
        ({"extra": ["comment=x"]}, "'comment=x' is not an option of sbatch"),
        ({"container": Container.pyxis}, "needs launcher.slurm.image"),
        ({"gpus": GpuOption.none, "gpu_type": "h200"}, "gpu_type is set, but the job requests no GPUs"),
        ({"job_name": "a\nb"}, "job_name contains a line break"),
        ({"connect_timeout_s": 0.0}, "connect_timeout_s=0.0 must be more than 0"),
        ({"time": "2"}, "time=2 is 120 s, but ranks are asked to stop signal_lead_s=120 s before the limit"),
        ({"time": "2:01"}, None),
        ({"setup": ["if true; then\n  :\nfi"]}, None),
    ],
)
def test_settings_that_make_no_job(settings: dict, said: str | None) -> None:
    problems = slurm_problems(replace(SlurmConfig(), **settings), JOB.machine)
    assert [said in line for line in problems if said] == ([True] if said else [])
    assert bool(problems) is bool(said)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400), ("1:30", 90), ("2:00:05", 7205), ("1-0", 86_400), ("1-2:03", 93_780), ("1-2:03:04", 93_784),
        ("0", 0), ("UNLIMITED", None), ("", None), ("1:2:3:4", None),
    ],
)  # fmt: skip
def test_time_limits(text: str, seconds: int | None) -> None:
    assert time_limit_s(text) == seconds


def test_the_machine_is_what_is_asked_for() -> None:
    machine, problems = slurm_machine(TopologyConfig(nodes=2, gpus_per_node=4), SlurmConfig())
    assert (machine, problems) == (Machine("cuda", 2, 4, 32), [])
    assert slurm_machine(TopologyConfig(gpus_per_node=2, device=Device.cpu), SlurmConfig())[0].device == "cpu"
    assert slurm_machine(TopologyConfig(), SlurmConfig())[1] == [
        "launcher=slurm needs the number of ranks per node: topology=8gpu, topology=2x8, ..."
    ]
