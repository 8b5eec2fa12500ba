"""What a batch script does with the answers it gets, by fakes of Slurm's commands and of our Python."""

import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from opensora_launch.plan.plan import Machine
from opensora_launch.schema.slurm import SlurmConfig
from opensora_launch.slurm.script import SlurmJob, hand_script, job_script

# One script under all names. It notes each call, answers as Slurm 22.05 does, and takes what differs from variables.
FAKE = r"""#!/bin/bash
name=${0##*/} all="$*"
echo "$name $all" >>"$CALLS"
case "$name $all" in
  "scontrol show hostnames"*) printf '%s\n' n1 n2 n3 ;;
  "scontrol --oneliner show job"*) [ -z "$RECORD" ] || printf '%s\n' "$RECORD" ;;
  "squeue "*) echo "${STATE-RUNNING}" ;;
  "srun "*--overlap*)
    node=${all##*--nodelist=}
    [[ " $DEAD " != *" ${node%% *} "* ]] || { echo "srun: error: it fails" >&2; exit 1; }
    ;;
  "scontrol requeue "*) # Slurm ends all processes of the job, while this one may still be at work
    kill -TERM $PPID $$
    echo "Slurm has put the job back" >>"$CALLS"
    ;;
  "sbatch "*) exit "${NO_OTHERS:-0}" ;;
  "srun "*) eval "$RANKS" ;;
  "python "*" --attempt "*) env | grep -E '^SLURM_' >"$SEEN"; echo "$ATTEMPT" ;;
  "python "*" --run-file "*) env | grep -E '^SLURM_' >"$SEEN"; echo "$ATTEMPT" ;;
  "python "*" --code "*) echo "${CODE:-1}" ;;
  "python "*" --with-less "*) exit 1 ;;
  "python "*" --requeue "*) exit "${REFUSED:-0}" ;;
esac
"""
OWN = "JobId=60 JobName=x Requeue=1 Restarts=0 SubmitTime=1700000000 ReqNodeList=(null) ExcNodeList=(null) NodeList=n"
TASK = OWN.replace("JobId=60", "JobId=60 ArrayJobId=58 ArrayTaskId=2").replace("Restarts=0", "Restarts=4")
OUTER = {
    "SLURM_ARRAY_JOB_ID": "50", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "9", "SLURM_RESTART_COUNT": "20",
    "SLURM_STEP_ID": "0", "SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_MEM_PER_CPU": "100",
    "SLURM_GPUS_PER_TASK": "1", "SLURM_TRES_PER_TASK": "gres:gpu:1", "SLURM_GPU_BIND": "single:1",
}  # fmt: skip
LAYOUT = ("SLURM_HINT", "SLURM_DISTRIBUTION", "SLURM_THREADS_PER_CORE", "SLURM_NTASKS_PER_GPU")


@dataclass
class Done:
    code: int
    out: str
    err: str
    calls: list[str]
    seen: dict[str, str]  # Slurm's variables when the folder of the attempt was asked for

    def called(self, start: str) -> list[str]:
        return [call for call in self.calls if call.startswith(start)]


class FakeSlurm:
    """Runs batch scripts with fakes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.attempt = folder, folder / "run/attempts/0"
        (self.attempt / "logs").mkdir(parents=True)
        (folder / "bin").mkdir()
        for name in ("scontrol", "squeue", "srun", "sbatch", "python"):
            (folder / "bin" / name).write_text(FAKE)
            (folder / "bin" / name).chmod(0o755)
        (folder / "bin/sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.02\n")
        (folder / "bin/sleep").chmod(0o755)

    def script(self, **settings: object) -> str:
        chosen = replace(SlurmConfig(), **settings)  # type: ignore[arg-type]
        return job_script(SlurmJob(chosen, Machine("cpu", 3, 1, 1), 1, self.attempt, "python"))

    def run(self, script: str, **env: str) -> Done:
        (self.folder / "job.sh").write_text(script)
        own = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "CALLS": str(self.folder / "calls"), "RECORD": OWN,
            "SEEN": str(self.folder / "seen"), "ATTEMPT": str(self.attempt), "RANKS": "exit 1", "DEAD": "",
            "SLURM_JOB_ID": "60", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_NUM_NODES": "3",
        }  # fmt: skip
        (self.folder / "calls").write_text("")
        done = subprocess.run(
            ["bash", self.folder / "job.sh"], cwd=self.folder, env=own | env, capture_output=True, text=True, timeout=60
        )
        seen = self.folder / "seen"
        words = [line.split("=", 1) for line in seen.read_text().splitlines()] if seen.exists() else []
        calls = (self.folder / "calls").read_text().splitlines()
        return Done(done.returncode, done.stdout, done.stderr, calls, {word[0]: word[-1] for word in words})


@pytest.fixture
def fake(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_job_inside_another_trusts_only_its_own_numbers(fake: FakeSlurm, by_hand: bool) -> None:
    """Submitted from task 3 of array 50, it is job 60, starts for the first time, and requeues itself."""
    settings = SlurmConfig(python="python")
    script = hand_script(settings, "", nodes=3, ranks_per_node=1) if by_hand else fake.script()
    done = fake.run(script, RANKS="exit 75", SLURM_SUBMIT_DIR="/here", **OUTER, **dict.fromkeys(LAYOUT, "1"))
    assert done.called("scontrol requeue") == ["scontrol requeue 60"]
    assert done.seen["SLURM_RESTART_COUNT"] == "0"
    assert [name for name in done.seen if name in OUTER] == ["SLURM_RESTART_COUNT"]
    assert {*LAYOUT} & {*done.seen} == (set() if by_hand else {*LAYOUT})  # the launcher takes them away from sbatch
    if by_hand:
        assert "--run-file /here/slurm-60.run --submitted 1700000000 " in done.called("python")[0]


def test_gpus_that_a_job_asks_for_per_task_are_its_own(fake: FakeSlurm) -> None:
    record = f"{OWN} TresPerTask=gres:gpu:1 TresBind=gpu:single:1 "
    done = fake.run(hand_script(SlurmConfig(python="python"), "", nodes=3, ranks_per_node=1), RECORD=record, **OUTER)
    assert (done.seen["SLURM_GPUS_PER_TASK"], done.seen["SLURM_GPU_BIND"]) == ("1", "single:1")


@pytest.mark.parametrize(("limit_s", "refused"), [(60, True), (120, True), (180, False)])
def test_a_time_limit_that_leaves_no_time(fake: FakeSlurm, limit_s: int, refused: bool) -> None:
    """Of a script that is submitted by hand, or by a site's default."""
    record = OWN.replace(" ReqNodeList", f" StartTime=1700000000 EndTime={1700000000 + limit_s} ReqNodeList")
    for script in (hand_script(SlurmConfig(python="python"), "", nodes=3, ranks_per_node=1), fake.script()):
        done = fake.run(script, RECORD=record, RANKS="exit 0")
        assert (done.code, bool(done.called("srun"))) == ((2, False) if refused else (0, True))
        assert (
            f"error: this job's time limit is {limit_s} s, but its ranks are asked to stop 120 s" in done.err
        ) == refused


def test_a_task_of_an_array_has_its_numbers_from_slurm(fake: FakeSlurm) -> None:
    script = hand_script(SlurmConfig(python="python"), "", nodes=3, ranks_per_node=1)
    done = fake.run(script, RANKS="exit 75", RECORD=TASK, SLURM_SUBMIT_DIR="/here", **OUTER)
    assert done.called("scontrol requeue") == ["scontrol requeue 58_2"]
    assert (done.seen["SLURM_ARRAY_JOB_ID"], done.seen["SLURM_ARRAY_TASK_ID"]) == ("58", "2")
    assert done.seen["SLURM_RESTART_COUNT"] == "4"
    assert "--run-file /here/slurm-58.run " in done.called("python")[0]


def test_the_variables_count_where_slurm_does_not_answer(fake: FakeSlurm) -> None:
    """The launcher has taken those of an enclosing job away."""
    done = fake.run(fake.script(), RANKS="exit 75", RECORD="", SLURM_ARRAY_JOB_ID="58", SLURM_ARRAY_TASK_ID="2")
    assert done.called("scontrol requeue") == ["scontrol requeue 58_2"]


@pytest.mark.parametrize(
    ("dead", "requeued", "said"),
    [
        ("", False, ""),
        ("n2 n3", True, "requeued after exit code 1: lost: n2, n3\n"),
        ("n1", False, "srun fails on n1 too, so no node counts as lost: srun: error: it fails\n"),
        ("n1 n2 n3", False, "srun fails on n1 too"),
    ],
)
def test_a_node_is_lost_if_srun_fails_on_it_alone(fake: FakeSlurm, dead: str, requeued: bool, said: str) -> None:
    done = fake.run(fake.script(), DEAD=dead)
    assert (done.code, bool(done.called("scontrol requeue"))) == (1, requeued)
    assert said in done.out + done.err


def test_a_job_whose_ranks_end_well_fails_if_a_video_did(fake: FakeSlurm) -> None:
    assert fake.run(fake.script(), RANKS="exit 0").code == 0
    (fake.folder / "run/failed").mkdir()
    (fake.folder / "run/failed/0001_0.txt").write_text("the VAE made NaN")
    done = fake.run(fake.script(), RANKS="exit 0")
    assert (done.code, f"the others are made: {fake.folder}/run/failed\n" in done.out) == (1, True)


def test_a_job_that_may_not_start_again_keeps_its_exit_code(fake: FakeSlurm) -> None:
    done = fake.run(fake.script(), RANKS="exit 75", REFUSED="1")
    assert (done.code, done.called("scontrol requeue")) == (75, [])
    assert "requeued" not in done.out
    done = fake.run(fake.script(max_restarts=4), RANKS="exit 75", RECORD=TASK)
    assert (done.code, done.called("scontrol requeue")) == (75, [])
    assert "this job was restarted 4 times" in done.out


@pytest.mark.parametrize(("state", "said"), [("CANCELLED", "CANCELLED"), ("", "nothing")])
def test_a_job_that_is_cancelled_is_not_requeued(fake: FakeSlurm, state: str, said: str) -> None:
    done = fake.run(fake.script(), RANKS="exit 75", STATE=state)
    assert (done.code, done.called("scontrol requeue")) == (75, [])
    assert f"not requeued: squeue calls this job {said}\n" in done.out


def test_a_requeue_is_not_lost_when_slurm_ends_the_job_meanwhile(fake: FakeSlurm) -> None:
    done = fake.run(fake.script(), RANKS="exit 75")
    assert "Slurm has put the job back" in done.calls
    assert "requeued after exit code 75: the ranks have stored their state\n" in done.out


@pytest.mark.parametrize("deaf", ["", "trap '' TERM; "])
def test_ranks_that_do_not_end_after_a_failure_are_ended(fake: FakeSlurm, deaf: str) -> None:
    """The link to n2 is cut: srun waits for its ranks, and may not even end itself."""
    ranks = f"{deaf}touch $ATTEMPT/error.json; while :; do /bin/sleep 0.05; done"
    done = fake.run(fake.script(), RANKS=ranks, DEAD="n2")
    assert "a rank failed 90 s ago and others still run: the step is ended\n" in done.out
    assert "requeued after exit code 1: lost: n2\n" in done.out


MODULE = "module() { false; return 3; }"  # as of a site that does not have it


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"setup": [MODULE, "module load nothing"]}, "exit code 3: module load nothing\n"),
        ({"modules": ["cuda/12.4"]}, "exit code 127: module load cuda/12.4\n"),
        ({"setup": ["for i in 1; do", "  false", "done"]}, "exit code 1:   false\n"),
        ({"setup": ["set -e", MODULE, "module x"]}, "exit code 1: module x\n"),
        ({"setup": ["set -u", 'cd "$NOWHERE"']}, 'exit code 1: cd "$NOWHERE"\n'),
        ({"setup": ["exit 9"]}, "exit code 9: exit 9\n"),
        ({"setup": [". lines.sh"]}, "exit code 4: . lines.sh\n"),
    ],
)
def test_a_line_that_fails_ends_the_job(fake: FakeSlurm, settings: dict, said: str) -> None:
    (fake.folder / "lines.sh").write_text("false\nreturn 4\n")
    done = fake.run(fake.script(**settings))
    assert (done.code, done.calls) == (2, [])
    assert done.err.endswith(f"error: this line of the job's script failed with {said}")
    assert done.err.count("error: ") == 1


@pytest.mark.parametrize(
    "line", ["set -e", "false || true", ". lines.sh", "if false; then :; fi", "trap : EXIT", "set -E"]
)
def test_lines_that_do_not_fail_change_nothing(fake: FakeSlurm, line: str) -> None:
    """With set -e, the requeue still comes after ranks that end with 75."""
    (fake.folder / "lines.sh").write_text("false\n:\n")
    done = fake.run(fake.script(setup=[line]), RANKS="exit 75")
    assert (done.code, done.called("scontrol requeue")) == (75, ["scontrol requeue 60"])
    assert "error" not in done.err


@pytest.mark.parametrize(
    ("excluded", "none", "update"),
    [
        ("(null)", "0", ["scontrol update JobId=60 ExcNodeList=n2,n3"]),
        ("n[7-8]", "0", ["scontrol update JobId=60 ExcNodeList=n2,n3,n[7-8]"]),
        ("(null)", "1", []),
    ],
)
def test_the_next_start_avoids_lost_nodes_if_there_are_others(
    fake: FakeSlurm, excluded: str, none: str, update: list[str]
) -> None:
    """sbatch --test-only tells whether the job can run without them."""
    record = OWN.replace("ExcNodeList=(null)", f"ExcNodeList={excluded}")
    done = fake.run(fake.script(), DEAD="n2 n3", RECORD=record, NO_OTHERS=none)
    assert len(done.called("scontrol requeue")) == len(done.called("sbatch --test-only")) == 1
    assert done.called("scontrol update") == update
    assert fake.run(fake.script(), RANKS="exit 75").called("scontrol update") == []
