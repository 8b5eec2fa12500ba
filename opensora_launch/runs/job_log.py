"""What the log of a batch job says: where it is, and why a start of the job ended."""

import re
from collections.abc import Sequence
from pathlib import Path

from opensora_launch.runs.state import AttemptState

_BY_SLURM = re.compile(r"CANCELLED AT \S+ DUE TO ([A-Z ]+)")


def job_log(attempts: Sequence[AttemptState], attempt: AttemptState) -> Path | None:
    """The log of the job that started an attempt; None for a job by hand, whose log is where its user wants it.

    All starts of a job append to one file, in the folder of the attempt that was submitted. Slurm makes that file, so
    it is missing if the job never started, or started on a node that does not see the folder.
    """
    job, _, task = attempt.job.partition("_")
    same = [a for a in attempts if job and a.job.partition("_")[0] == job]
    submitted = next((a.folder for a in same if a.folder.batch_script.exists()), None)
    return submitted.logs / (f"job.{task}.log" if task else "job.log") if submitted else None


def why_it_ended(log: Path | None, attempt: AttemptState) -> str:
    """Why this start of a job ended, as its script recorded, or as Slurm wrote into its log: "preemption"; else ""."""
    if attempt.folder.requeued.exists():
        return attempt.folder.requeued.read_text(encoding="utf-8").strip()
    text = log.read_text(encoding="utf-8", errors="replace") if log and log.exists() else ""
    said = text.rpartition(f": {attempt.folder}\n")[2].partition("\njob ")[0]  # "job 7 on n1: FOLDER" begins each start
    found = _BY_SLURM.search(said)
    return found[1].strip().lower() if found else ""
