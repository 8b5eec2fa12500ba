"""What the XIDs mean that a GPU's driver reports, and what to do.

After NVIDIA's catalogue, https://docs.nvidia.com/deploy/xid-errors.
"""

from opensora_launch.report.wording import Message, message

PROGRAM, MEMORY, LINK = message("xid_program"), message("xid_memory"), message("xid_nvlink")
FIRMWARE, SPARED = message("xid_firmware"), message("xid_spared")
XIDS = {
    13: PROGRAM,
    31: PROGRAM,
    43: PROGRAM,
    45: message("xid_cleanup"),
    48: MEMORY,
    61: FIRMWARE,
    62: FIRMWARE,
    63: SPARED,
    64: message("xid_not_spared"),
    69: PROGRAM,
    74: LINK,
    79: message("xid_lost"),
    94: message("xid_contained"),
    95: MEMORY,
    119: FIRMWARE,
    120: FIRMWARE,
    140: MEMORY,
}


def xid_error(xid: int) -> Message:
    """The XID with what it means and what to do."""
    return message("xid", xid=xid, meaning=XIDS.get(xid, message("xid_other")))
