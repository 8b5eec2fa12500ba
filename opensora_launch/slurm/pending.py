"""Why a job waits that cannot start by waiting alone, and what to do about it. Pure."""

import re

_ADVICE = (
    (r"TimeLimit|MaxWall", "lower launcher.slurm.time"),
    (
        r"NodeLimit|PerJob|PerNode|MinGRES|MinCpu|BadConstraints",
        "ask for less (topology, cpus_per_rank, mem), or for another partition, qos or constraint",
    ),
    (r"(Account|QOS|Assoc)\w*NotAllowed|Invalid(Account|QOS)", "set account, partition and qos to what you may use"),
    (r"DependencyNeverSatisfied", "the job that it depends on has failed"),
    (r"JobHeld|requeued.held", "it is held: scontrol release"),
    (
        r"ReqNodeNotAvail|NodeDown|Partition(Down|Inactive)|ReservationDeleted",
        "its nodes are down, drained or reserved: sinfo -R",
    ),
)


def advice_on(reason: str) -> str:
    """What to do about a job that waits for this reason of Slurm; "" if it only has to wait for its turn."""
    return next((advice for pattern, advice in _ADVICE if re.search(pattern, reason)), "")
