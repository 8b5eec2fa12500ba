"""Which GPUs CUDA shows to a process: the rules of CUDA_VISIBLE_DEVICES, with CUDA_DEVICE_ORDER=PCI_BUS_ID.

Sources: CUDA programming guide, "CUDA environment variables", and NVIDIA's MIG user guide. The guide does not mention
repeated or mixed entries; for those this follows torch.cuda, which does what the driver does.
"""

import re
from collections.abc import Sequence
from typing import Protocol, TypeVar

MIG = "MIG-"
NUMBER = re.compile(r"\+?[0-9]+")  # CUDA reads numbers as strtoul does: "1x" is 1


class _HasUuid(Protocol):
    @property
    def uuid(self) -> str: ...


_T = TypeVar("_T", bound=_HasUuid)


def visible_gpus(gpus: Sequence[_T], setting: str | None) -> tuple[_T, ...]:
    """The GPUs that CUDA shows, in CUDA's order.

    `gpus` are those of the host in the order of their PCI addresses, with MIG instances anywhere among them; `setting`
    is CUDA_VISIBLE_DEVICES, None where it is not set: then every whole GPU is visible.

    An entry is an index, a GPU's UUID or a prefix of one that is unique, or the UUID of a MIG instance; all entries
    are of the first one's kind. The first invalid entry ends the list. A GPU that is named twice empties it. CUDA
    enumerates one MIG instance at most.
    """
    whole = [gpu for gpu in gpus if not gpu.uuid.startswith(MIG)]
    if setting is None:
        return tuple(whole)
    entries = [entry.strip() for entry in setting.split(",")]
    kind = next((prefix for prefix in ("GPU-", MIG) if entries[0].startswith(prefix)), "")
    shown: list[_T] = []
    for entry in entries:
        if kind:
            hits = [gpu for gpu in gpus if entry.startswith(kind) and gpu.uuid.startswith(entry)]
        else:
            number = NUMBER.match(entry)
            hits = whole[int(number[0]) :][:1] if number else []
        if len(hits) != 1:
            break
        if hits[0] in shown:
            return ()
        shown += hits
    return tuple(shown[:1] if kind == MIG else shown)


def own_instance(setting: str | None, place: int, ranks: int) -> str:
    """The MIG instance of the rank at this place among the ranks of a node, which all have `setting`.

    It is "" if there is no choice to make: `setting` names no instances, or fewer than there are ranks.
    """
    entries = [entry.strip() for entry in (setting or "").split(",")]
    return entries[place] if ranks <= len(entries) and all(entry.startswith(MIG) for entry in entries) else ""
