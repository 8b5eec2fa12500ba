"""`launcher=slurm` on a host without Slurm: the script in a dry run, its predicted limits, and what is refused."""

import re
from functools import partial
from pathlib import Path

import pytest

from opensora_launch.cli import main, submit
from opensora_launch.slurm import query as slurm_query

WORDS = ("generate", "--prompt", "x", "topology=2x8", "launcher=slurm", "video=768px", "model=open_sora_v2")


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def options(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, str]:
    assert main([*WORDS, *more, "dry_run=true"]) == 0
    found = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", capsys.readouterr().out, re.MULTILINE)
    return dict(found)


def test_a_dry_run_shows_the_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = options(capsys, "launcher.slurm.partition=h100", "launcher.slurm.gpus=gres", "launcher.slurm.gpu_type=h100")
    assert (asked["nodes"], asked["ntasks-per-node"], asked["partition"]) == ("2", "8", "h100")
    assert asked["gres"] == "gpu:h100:8"
    assert "time" not in asked
    assert list(tmp_path.iterdir()) == []


def test_the_first_nodes_address_reaches_the_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "launcher.slurm.head_address=10.1.2.3", "dry_run=true"]) == 0
    assert "export HEAD_ADDRESS='10.1.2.3'\n" in capsys.readouterr().out


def test_time_and_memory_are_the_predictions_where_the_card_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    asked = options(capsys, "hardware=h100_sxm")
    assert 15 < int(asked["time"]) < 60
    assert 64 <= int(asked["mem"].removesuffix("G")) < 1000
    many = options(capsys, "hardware=h100_sxm", "sampling.num_samples=100", "launcher.slurm.mem=0")
    assert int(many["time"]) > 2 * int(asked["time"])
    assert many["mem"] == "0"


def test_what_is_refused_is_said_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("launcher.slurm.array=0", "launcher.slurm.container=pyxis", "topology.gpus_per_node=null")
    assert main(["generate", "--prompt", "x", "model=tiny", "launcher=slurm", *words]) == 2
    said = capsys.readouterr().err
    for line in ("array=0 must be at least 1", "needs launcher.slurm.image", "needs the number of ranks per node"):
        assert line in said
    assert slurm_query.no_sbatch()[0] in said
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_key_names_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "launcher.slurm.partitoin=x"]) == 2
    said = capsys.readouterr().err
    assert "did you mean launcher.slurm.partition?" in said


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fakes of sbatch, which keeps its environment beside itself and takes the job, and of squeue, which knows it."""
    command, queue = tmp_path / "sbatch", tmp_path / "squeue"
    command.write_text(f"""#!/bin/bash
export -p >{tmp_path}/env
script=$2
echo "59|/other/job.sbatch
60|$script" >{tmp_path}/queue
echo "${{SAYS-60}}"
[ -z "${{FAILS:-}}" ] || {{ echo "sbatch: error: Batch job submission failed: $FAILS" >&2; exit 1; }}
""")
    queue.write_text(
        f'#!/bin/bash\n[ -n "${{NONE:-}}" ] || while read -r line; do echo "$line"; done <{tmp_path}/queue\n'
    )
    command.chmod(0o755)
    queue.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return command


TINY = ("generate", "--prompt", "x", "model=tiny", "topology=cpu1", "launcher=slurm")


def test_a_job_gets_nothing_of_the_job_that_submits_it(
    sbatch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_CPU_BIND", "SBATCH_QOS", "RANK", "SLURM_CONF", "MINE"):
        monkeypatch.setenv(name, "7")
    assert main([*TINY]) == 0
    assert "not used: SBATCH_QOS; the options of the job are launcher.slurm.*\n" in capsys.readouterr().err
    env = (sbatch.parent / "env").read_text()
    assert [name for name in ("SLURM", "SBATCH", "RANK", "MINE") if f" {name}" in env] == ["SLURM", "MINE"]
    assert re.findall(r" (SLURM\w*)", env) == ["SLURM_CONF"]


@pytest.mark.parametrize(
    "env",
    [
        {"SAYS": "Welcome to our cluster, 7 nodes are down\n60;ours\nnews: 8"},
        {"SAYS": "60\n"},
        {"SAYS": ""},  # found by its script
        {"SAYS": "Submitted to the test queue"},
        {"FAILS": "Socket timed out on send/recv operation", "SAYS": ""},
    ],
)
def test_the_id_of_a_job_that_slurm_has_taken(
    env: dict[str, str], sbatch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert main([*TINY]) == 0
    assert capsys.readouterr().out.startswith("job: 60\n")
    (launcher,) = sbatch.parent.glob("runs/*/attempts/0/launcher.json")
    assert '"job":"60"' in launcher.read_text()


@pytest.mark.parametrize("env", [{"SAYS": "no id"}, {"FAILS": "Socket timed out on send/recv operation"}])
def test_a_job_that_may_come_keeps_its_folder(
    env: dict[str, str], sbatch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in ({"NONE": "1"} | env).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(submit, "submit_job", partial(slurm_query.submit_job, look_s=0.0))
    assert main([*TINY]) == 2
    (script,) = sbatch.parent.glob("runs/*/attempts/0/job.sbatch")
    said = capsys.readouterr().err
    assert f"it is not known whether Slurm has taken {script}:\n" in said
    assert [line for line in (*env.values(), f"sbatch {script}\n") if line not in said] == []


def test_a_job_that_is_refused_leaves_nothing(
    sbatch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILS", "Invalid account or account/partition combination specified")
    assert main([*TINY]) == 2
    assert "  - Batch job submission failed: Invalid account" in capsys.readouterr().err
    assert list((sbatch.parent / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("videos", "array", "asked"), [(3, 300, "--array=0-2%2"), (1, 300, None), (3, 2, "--array=0-1%2")]
)
def test_an_array_is_not_longer_than_its_videos(
    videos: int, array: int, asked: str | None, sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tasks make their folders themselves."""
    words = [*TINY, f"sampling.num_samples={videos}", f"launcher.slurm.array={array}", "launcher.slurm.array_limit=2"]
    assert main(words) == 0
    (attempt,) = sbatch.parent.glob("runs/*/attempts/*")
    options = re.findall(r"^#SBATCH (--array.*)$", (attempt / "job.sbatch").read_text(), re.MULTILINE)
    assert options == ([asked] if asked else [])
    shorter = f"launcher.slurm.array={array}: {videos} {'is' if videos == 1 else 'are'} enough for {videos} videos\n"
    assert (shorter in capsys.readouterr().err) == (array > videos)
    assert ('"job":"60_0"' if asked else '"job":"60"') in (attempt / "launcher.json").read_text()
