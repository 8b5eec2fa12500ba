"""What the XIDs mean that a GPU's driver reports, and what to do.

After NVIDIA's catalogue, https://docs.nvidia.com/deploy/xid-errors.
"""

from opensora_launch.report.wording import Message, message

XIDS = {
    **dict.fromkeys((13, 31, 43, 69), message("xid_program")),
    45: message("xid_cleanup"),
    **dict.fromkeys((48, 95, 140), message("xid_memory")),
    **dict.fromkeys((61, 62, 119, 120), message("xid_firmware")),
    63: message("xid_spared"),
    64: message("xid_not_spared"),
    74: message("xid_nvlink"),
    79: message("xid_lost"),
    94: message("xid_contained"),
}


def xid_error(xid: int) -> Message:
    """The XID with what it means and what to do."""
    return message("xid", xid=xid, meaning=XIDS.get(xid, message("xid_other")))
