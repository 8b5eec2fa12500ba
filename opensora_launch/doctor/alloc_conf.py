"""PYTORCH_CUDA_ALLOC_CONF: options that stop torch, that exclude each other, or that the installed torch ignores.

Rules: torch's c10/core/AllocatorConfig and c10/cuda/CUDAAllocatorConfig, and its notes on memory management.
"""

import re
from collections.abc import Iterator, Mapping

from opensora_launch.doctor.results import Finding, Level

NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # in the order in which torch for CUDA looks
PYTORCH_ALLOC_CONF_SINCE = (2, 9)
LEAST_SPLIT_MB = 20  # torch raises below its large segment, which large_segment_size_mb may set
LEAST_SEGMENT_MB = 11
MOST_REGISTER_THREADS = 128
SMALL_SPLIT_MB = 128  # blocks above it are not reused for smaller tensors: more memory, more cudaMalloc
NATIVE_ONLY = ("max_split_size_mb", "garbage_collection_threshold", "expandable_segments", "roundup_power2_divisions")
SWITCHES = {  # True or False, and no other spelling
    "expandable_segments", "release_lock_on_cudamalloc", "pinned_use_cuda_host_register",
    "pinned_use_background_threads", "graph_capture_record_stream_reuse", "pinned_free_catch_all",
    "throw_on_cudamalloc_oom",
}  # fmt: skip
COUNTS = {  # whole numbers
    "max_split_size_mb", "max_non_split_rounding_mb", "large_segment_size_mb", "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb", "pinned_max_round_threshold_mb", "pinned_max_cached_size_mb",
    "pinned_max_power2_size_mb",
}  # fmt: skip
BACKENDS = ("native", "cudaMallocAsync")
KNOWN = {
    *SWITCHES, *COUNTS, "backend", "garbage_collection_threshold", "roundup_power2_divisions",
    "per_process_memory_fraction",
}  # fmt: skip
FREE = "no cost; takes effect at the next start"


def parse(text: str) -> dict[str, str]:
    """key -> value. A part without a colon is kept with an empty value."""
    pairs = (part.partition(":") for part in _parts(text))
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip()}


def alloc_findings(env: Mapping[str, str], torch: tuple[int, int] | None) -> list[Finding]:
    """What is wrong with the allocator's settings on a machine with GPUs."""
    given = [name for name in NAMES if env.get(name)]
    found = list(_names(env, given, torch))
    for name in given[:1]:
        found += _options(name, parse(env[name]), "PYTORCH_NO_CUDA_MEMORY_CACHING" in env)
    return found


def _parts(text: str) -> Iterator[str]:
    """Split at commas outside brackets: roundup_power2_divisions:[256:1,512:2]."""
    depth, part = 0, ""
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            yield part
            part = ""
        else:
            part += letter
    yield part


def _names(env: Mapping[str, str], given: list[str], torch: tuple[int, int] | None) -> Iterator[Finding]:
    if "PYTORCH_ALLOC_CONF" in given and torch and torch < PYTORCH_ALLOC_CONF_SINCE:
        yield _warn(
            f"PYTORCH_ALLOC_CONF={env['PYTORCH_ALLOC_CONF']}: torch {torch[0]}.{torch[1]} ignores that name",
            "write PYTORCH_CUDA_ALLOC_CONF",
        )
    if len(given) == 2 and env[NAMES[0]] != env[NAMES[1]]:
        yield _warn(f"{NAMES[1]} is ignored: {NAMES[0]} is set too and is read first", f"unset one; {NAMES[0]} wins")
    if env.get("PYTORCH_HIP_ALLOC_CONF"):
        yield _warn("PYTORCH_HIP_ALLOC_CONF is read by torch for AMD only", f"write {NAMES[0]}")


def _options(name: str, options: Mapping[str, str], uncached: bool) -> Iterator[Finding]:
    split, segment = options.get("max_split_size_mb", ""), options.get("large_segment_size_mb", "")
    least = int(segment) if segment.isdigit() else LEAST_SPLIT_MB
    for key, value in options.items():
        if not value:
            yield _fail(f"{name}: {key!r} has no value, and torch stops at it", "options are written key:value")
        elif key not in KNOWN:
            yield _fail(f"{name}: torch knows no option {key!r}, and stops at it", f"take {key} out")
        elif key in COUNTS and not value.isdigit() and re.match(r"[+-]?\d", value):
            yield _warn(
                f"{name}: {key}:{value} is no whole number; torch reads what its first digits say", f"take {key} out"
            )
        elif why := _wrong_value(key, value, least):
            yield _fail(f"{name}: {key}:{value} {why}, and torch stops at it", f"a value that it takes, or no {key}")
    if split.isdigit() and int(split) < least:
        yield _fail(
            f"{name}: max_split_size_mb:{split} is below {least}, where torch raises at the first tensor",
            "take it out; against fragments expandable_segments:True does more",
        )
    elif split.isdigit() and int(split) < SMALL_SPLIT_MB:
        yield _warn(
            f"{name}: max_split_size_mb:{split} keeps every larger block from being reused for less: more memory, "
            "more cudaMalloc",
            "take it out; against fragments expandable_segments:True does more",
        )
    on = {key for key in NATIVE_ONLY if key in options and options[key].lower() != "false"}
    if options.get("backend") == "cudaMallocAsync" and on:
        yield _warn(
            f"{name}: backend:cudaMallocAsync excludes {', '.join(sorted(on))}: the driver's allocator ignores them",
            "take out the one or the others; expandable_segments:True alone is right here",
        )
    elif {"expandable_segments", "max_split_size_mb"} <= on:
        yield _warn(
            f"{name}: max_split_size_mb beside expandable_segments:True: both answer fragments, and the limit keeps "
            "the segments from being reused",
            "take max_split_size_mb out",
        )
    if uncached and "expandable_segments" in on:
        yield _warn(f"{name}: PYTORCH_NO_CUDA_MEMORY_CACHING turns all of it off", "unset the latter")


def _wrong_value(key: str, value: str, least: int) -> str:
    """Why torch's parser refuses a value, or "". `least` is the large segment's size in MB."""
    if key in SWITCHES:
        return "" if value in ("True", "False") else "must be True or False, written so"
    if key in COUNTS:
        return _wrong_count(key, value, least)
    if key == "backend":
        return "" if value in BACKENDS else f"must be {' or '.join(BACKENDS)}"
    if key == "roundup_power2_divisions":
        listed = re.fullmatch(r"\[((?:(?:\d+|>):\d+,?)+)\]", value)
        parts = re.findall(r":(\d+)", listed[1]) if listed else [value]
        right = all(part.isdigit() and (_is_power_of_2(int(part)) or (listed and int(part) == 0)) for part in parts)
        return "" if right else "must be a power of 2, or a list as [256:1,512:2,>:4]"
    try:
        share = float(value)
    except ValueError:
        return "must be a number"
    if key == "garbage_collection_threshold":
        return "" if 0 < share < 1 else "must lie between 0 and 1"
    return "" if 0 <= share <= 1 else "must be from 0 to 1"


def _wrong_count(key: str, value: str, segment_mb: int) -> str:
    if not value.isdigit():
        return "must be a whole number"
    number = int(value)
    if key == "pinned_num_register_threads":
        right = _is_power_of_2(number) and number <= MOST_REGISTER_THREADS
        return "" if right else f"must be a power of 2 of at most {MOST_REGISTER_THREADS}"
    least = {
        "large_segment_size_mb": LEAST_SEGMENT_MB,
        "max_non_split_rounding_mb": segment_mb,
        "pinned_reserve_segment_size_mb": 1,
    }.get(key, 0)
    return "" if number >= least else f"must be at least {least}"


def _is_power_of_2(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _warn(what: str, fix: str) -> Finding:
    return Finding(Level.warn, "env", what, fix, FREE)


def _fail(what: str, fix: str) -> Finding:
    return Finding(Level.fail, "env", what, fix, FREE)
