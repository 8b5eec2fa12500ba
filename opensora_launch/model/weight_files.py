"""Check weight files without torch: do they exist, are they complete, do they match the config?

The launcher runs these checks before any rank starts, so they read only the headers of files.
"""

import json
import shlex
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.model.shapes import Shapes, TensorShape, config_problems, mismatches, mmdit_shapes, vae_shapes
from opensora_launch.schema.config import Init, ModelConfig

_DOWNLOAD = "; to download it: "  # then the command
LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}  # weights in these types need no unpacking
PICKLES = (b"PK\x03\x04", b"\x80")  # first bytes of a file by torch.save, new and old
NESTED = ("state_dict", "module", "model")  # keys of the tensors in files of training programs
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = {"t5": ("tokenizer.json", "spiece.model"), "clip": ("tokenizer.json", "vocab.json")}  # any one


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file; `dtype` is the name that the format uses."""

    file: Path
    shape: TensorShape
    dtype: str


def check_files(model: ModelConfig) -> list[str]:
    """Return one line per problem with the config and the files of the model; [] if ranks can load them."""
    problems = config_problems(model)
    if model.init == Init.random:
        return problems
    folder, sound = Path(model.folder), not problems  # shapes of an impossible config would only mislead
    mmdit, vae = (mmdit_shapes(model.mmdit), vae_shapes(model.vae)) if sound else (None, None)
    problems += check_weights(folder / model.mmdit_file, mmdit, model, "mmdit_prefix")
    problems += check_weights(folder / model.vae_file, vae, model, "vae_prefix")
    problems += check_text_folder(folder / model.t5_folder, "t5", model)
    return _with_one_download([*problems, *check_text_folder(folder / model.clip_folder, "clip", model)])


def _with_one_download(problems: Sequence[str]) -> list[str]:
    """The same lines, with one line for all files that the same command downloads."""
    absent = dict[str, list[str]]()  # command -> lines
    for line in problems:
        absent.setdefault(line.partition(_DOWNLOAD)[2], []).append(line)
    return [line for command, lines in absent.items() for line in _joined(command, lines)]


def _joined(command: str, lines: Sequence[str]) -> Sequence[str]:
    if not command or len(lines) == 1:
        return lines
    *first, last = (line.removesuffix(f" is missing{_DOWNLOAD}{command}") for line in lines)
    return [f"{', '.join(first)} and {last} are missing; to download them: {command}"]


def check_weights(path: Path, want: Shapes | None, model: ModelConfig, prefix_key: str) -> list[str]:
    """Compare `want` with the names and shapes in a file, or in the files of its index; one line per problem.

    None for `want` only checks that the files exist and are complete. `prefix_key` is the key of `model` that says what
    starts the names in the file.
    """
    prefix = getattr(model, prefix_key)
    try:
        if absent := [file for file in files_of(path) if not file.is_file()]:
            return [missing(file, model) for file in absent]
        stored = read_stored(path)
    except UserError as error:
        return [str(error)]
    known = prefixes(stored, want or {})
    if known and prefix not in known:
        return [f"{path}: every name starts with {' or '.join(map(repr, known))}; use model.{prefix_key}={known[0]}"]
    return stored_problems(path, without_prefix(stored, prefix), want)


def without_prefix(stored: Mapping[str, Stored], prefix: str) -> dict[str, Stored]:
    """Return the tensors whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}


def prefixes(names: Collection[str], want: Collection[str]) -> list[str]:
    """Return what starts the names if all wanted ones are there behind it: "" as it should be, "module." by DDP."""
    longest = max(want, key=len, default=None)
    found = sorted(name.removesuffix(longest) for name in names if longest and name.endswith(longest))
    return [prefix for prefix in found if all(prefix + name in names for name in want)]


def stored_problems(path: Path, stored: Mapping[str, Stored], want: Shapes | None) -> list[str]:
    """Return one line per name, shape or type in a file that does not match `want` or cannot be read."""
    got = {name: tensor.shape for name, tensor in stored.items()}
    problems = [f"{path} does not match the config: {line}" for line in mismatches(want or got, got)]
    strange = sorted({tensor.dtype for tensor in stored.values()} - set(DTYPE_BYTES))
    return problems + [f"{path} holds {t} numbers; only {', '.join(DTYPE_BYTES)} can be read" for t in strange]


def files_of(path: Path) -> list[Path]:
    """Return the file itself, or those of its index: `path` may be one (*.json), or X.index.json may stand in for X."""
    index = path if path.suffix == ".json" else path.with_name(f"{path.name}.index.json")
    if path.suffix != ".json" and (path.is_file() or not index.is_file()):
        return [path]
    return indexed_files(index) if index.is_file() else [index]


def read_stored(path: Path) -> dict[str, Stored]:
    """List every tensor of a file, or of the files of an index, by name. Raises UserError like `read_header`."""
    return {name: stored for file in files_of(path) for name, stored in read_header(file).items()}


def missing(path: Path, model: ModelConfig) -> str:
    """Say that a file is missing, with the command to download it; {folder} in the command is the model's folder.

    If a folder is in its place, or a file in the place of a folder, a download would not help.
    """
    for place in (path, *path.parents):
        if place.is_file() or (place == path and place.is_dir()):
            kinds = ("a folder", "a file") if place.is_dir() else ("a file", "a folder")
            return f"{place} is {kinds[0]}, but {kinds[1]} is expected there"
    return f"{path} is missing{_DOWNLOAD}{model.download.replace('{folder}', shlex.quote(model.folder))}"


def read_header(path: Path) -> dict[str, Stored]:
    """List the tensors of a safetensors file. Raises UserError of one line if it is truncated or of another format."""
    from safetensors import SafetensorError, safe_open  # imports numpy, which most commands do not need

    size = path.stat().st_size
    with path.open("rb") as file:
        start, brace = file.read(8), file.read(1)
        if start.startswith(PICKLES) and brace != b"{":  # a header of 128 bytes has the same first byte as a pickle
            raise UserError(f"{path} is a pickle; to convert it: {convert_command(path)}")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= LARGEST_HEADER:
            raise UserError(f"{path} is not a safetensors file ({size} bytes); download it again")
        if 8 + length > size:
            raise UserError(
                f"{path} is truncated: its header needs {length} bytes, the file has {size}; download it again"
            )
        text = brace + file.read(length - 1)
    try:
        entries: Mapping[str, Any] = {k: v for k, v in json.loads(text).items() if k != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        stored = {
            name: Stored(path, tuple(map(int, entry["shape"])), str(entry["dtype"])) for name, entry in entries.items()
        }
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{path} is not a safetensors file (its header cannot be read); download it again") from error
    if end != size:
        raise UserError(f"{path} is truncated: it has {size} bytes, but its header says {end}; download it again")
    try:
        with safe_open(path, framework="np"):  # the library has more rules: spans without holes, of shape x dtype
            return stored
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); download it again") from error


def convert_command(path: Path) -> str:
    """Return a command that rewrites a pickle of tensors without running anything in it.

    Training programs put the tensors one or two levels down, beside the optimizer's.
    """
    code = (
        "import sys, torch, zipfile; from functools import reduce; from safetensors.torch import save_file; "
        "source, target = sys.argv[1:]; "
        "held = torch.load(source, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(source)); "
        f"held = reduce(lambda x, _: next((x[k] for k in {NESTED} if isinstance(x.get(k), dict)), x), range(3), held); "
        "save_file({k: v.contiguous().clone() for k, v in held.items() if torch.is_tensor(v)}, target)"
    )
    return shlex.join(["python", "-c", code, str(path), str(path.with_suffix(".converted.safetensors"))])


def check_text_folder(folder: Path, kind: str, model: ModelConfig) -> list[str]:
    """Check a folder of the transformers library: config, tokenizer, and weights as one file or in shards."""
    if not folder.is_dir():
        return [missing(folder, model)]
    problems = list(check_text_config(folder / "config.json", kind, model))
    if not any((folder / name).is_file() for name in TOKENIZERS[kind]):
        problems.append(missing(folder / TOKENIZERS[kind][0], model))
    try:
        files = weight_files(folder)
    except UserError as error:
        return [*problems, str(error)]
    if not files:
        problems.append(missing(folder / WEIGHTS[0], model))
    for file in files:
        if not file.is_file():
            problems.append(missing(file, model))
        elif file.suffix == ".safetensors":
            problems += check_header(file)
        elif not is_pickle(file):
            problems.append(f"{file} is truncated, or not a file by torch.save; download it again")
    return problems


def is_pickle(path: Path) -> bool:
    """Whether the file is a complete zip by torch.save, or starts like its older form."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(file) or (file.seek(0) == 0 and file.read(1) == PICKLES[1])


def check_header(path: Path) -> list[str]:
    try:
        read_header(path)
    except UserError as error:
        return [str(error)]
    return []


def check_text_config(path: Path, kind: str, model: ModelConfig) -> Iterator[str]:
    """Check that the width of the encoder is the one that the transformer was built for."""
    if not path.is_file():
        yield missing(path, model)
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        width = config["d_model"] if kind == "t5" else config.get("text_config", config)["hidden_size"]
    except (ValueError, KeyError, TypeError, AttributeError):
        yield f"{path} is not the config of a text encoder; download it again"
        return
    name = "context_in_dim" if kind == "t5" else "vec_in_dim"
    if width != (wanted := getattr(model.mmdit, name)):
        yield f"{path} describes an encoder with {width} channels, but model.mmdit.{name} is {wanted}"


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files in a transformers folder, safetensors rather than pickles; [] if there are none."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None or found.suffix != ".json":
        return [] if found is None else [found]
    return indexed_files(found)


def indexed_files(index: Path) -> list[Path]:
    """Return the files that the index of a sharded checkpoint names, each once."""
    try:
        return [index.with_name(name) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of weight files; download it again") from error
