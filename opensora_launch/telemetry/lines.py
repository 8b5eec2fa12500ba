"""Read files of JSON, and of JSON lines, that a killed process may have torn, or that somebody else wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from opensora_launch.errors import UserError

_T = TypeVar("_T")


class _Head(msgspec.Struct):
    kind: str
    schema: Any = None


_HEAD = msgspec.json.Decoder(_Head)


def read_json(path: Path, kind: type[_T]) -> _T | None:
    """What a file of JSON holds; None where it is missing, damaged or of another form."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def read_lines(
    text: str, kinds: Mapping[str, msgspec.json.Decoder[Any]], *, schemas: Sequence[int], path: Path
) -> tuple[dict[str, list[Any]], int]:
    """The records of each kind, and the number of bad lines.

    A line is bad if it is not whole, of no known kind, or holds values of wrong types. Keys that this version does not
    know are ignored. Raises UserError for another schema.
    """
    found: dict[str, list[Any]] = {kind: [] for kind in kinds}
    bad = 0
    for line in text.splitlines():
        try:
            head = _HEAD.decode(line)
            if head.schema is not None and head.schema not in schemas:
                known = " and ".join(map(str, schemas))
                raise UserError(f"{path} has schema {head.schema}; this version reads schema {known}")
            found[head.kind].append(kinds[head.kind].decode(line))
        except (msgspec.MsgspecError, KeyError):
            bad += 1
    return found, bad
