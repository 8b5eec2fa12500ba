"""Check PYTORCH_CUDA_ALLOC_CONF for options that stop torch, exclude each other, or are ignored by this torch.

Sources: torch's c10/core/AllocatorConfig and c10/cuda/CUDAAllocatorConfig, and its notes on memory management.
"""

import re
from collections.abc import Iterator, Mapping

from opensora_launch.doctor.check_result import CheckResult, Level, bad_variable

VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # in the order in which torch for CUDA reads them
PYTORCH_ALLOC_CONF_SINCE = (2, 9)
LEAST_SPLIT_MB = 20  # below its large segment torch raises; large_segment_size_mb changes that size
LEAST_SEGMENT_MB = 11
MOST_REGISTER_THREADS = 128
SMALL_SPLIT_MB = 128  # larger blocks are not reused for smaller tensors: more memory, more cudaMalloc
NATIVE_ONLY = ("max_split_size_mb", "garbage_collection_threshold", "expandable_segments", "roundup_power2_divisions")
SWITCHES = {  # spelled True or False, not otherwise
    "expandable_segments", "release_lock_on_cudamalloc", "pinned_use_cuda_host_register",
    "pinned_use_background_threads", "graph_capture_record_stream_reuse", "pinned_free_catch_all",
    "throw_on_cudamalloc_oom",
}  # fmt: skip
WHOLE_NUMBERS = {
    "max_split_size_mb", "max_non_split_rounding_mb", "large_segment_size_mb", "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb", "pinned_max_round_threshold_mb", "pinned_max_cached_size_mb",
    "pinned_max_power2_size_mb",
}  # fmt: skip
BACKENDS = ("native", "cudaMallocAsync")
KNOWN = {
    *SWITCHES, *WHOLE_NUMBERS, "backend", "garbage_collection_threshold", "roundup_power2_divisions",
    "per_process_memory_fraction",
}  # fmt: skip


def parse_alloc_conf(text: str) -> dict[str, str]:
    """Read the options: key -> value. A part without a colon gets an empty value."""
    parts = re.findall(r"(?:\[[^\]]*\]?|[^,\[])+", text)  # between commas outside brackets: a:[256:1,512:2]
    pairs = (part.partition(":") for part in parts)
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip()}


def check_allocator(env: Mapping[str, str], torch: tuple[int, int] | None) -> list[CheckResult]:
    """Check the allocator's settings on a machine with GPUs; `torch` is the installed version."""
    given = [name for name in VARIABLES if env.get(name)]
    found = list(_names(env, given, torch))
    for name in given[:1]:
        found += _options(name, parse_alloc_conf(env[name]), "PYTORCH_NO_CUDA_MEMORY_CACHING" in env)
    return found


def _names(env: Mapping[str, str], given: list[str], torch: tuple[int, int] | None) -> Iterator[CheckResult]:
    if "PYTORCH_ALLOC_CONF" in given and torch and torch < PYTORCH_ALLOC_CONF_SINCE:
        what = f"PYTORCH_ALLOC_CONF={env['PYTORCH_ALLOC_CONF']}: torch {torch[0]}.{torch[1]} ignores this name"
        yield bad_variable(what, "use PYTORCH_CUDA_ALLOC_CONF")
    if len(given) == 2 and env[VARIABLES[0]] != env[VARIABLES[1]]:
        what = f"{VARIABLES[1]} is ignored, because {VARIABLES[0]} is also set and takes precedence"
        yield bad_variable(what, "unset one of them")
    if env.get("PYTORCH_HIP_ALLOC_CONF"):
        yield bad_variable("PYTORCH_HIP_ALLOC_CONF is only read by torch for AMD GPUs", f"use {VARIABLES[0]}")


def _options(name: str, options: Mapping[str, str], uncached: bool) -> Iterator[CheckResult]:
    split, segment = options.get("max_split_size_mb", ""), options.get("large_segment_size_mb", "")
    least = int(segment) if segment.isdigit() else LEAST_SPLIT_MB
    for key, value in options.items():
        if not value:
            yield bad_variable(
                f"{name}: {key!r} has no value, so torch stops", "write options as key:value", Level.fail
            )
        elif key not in KNOWN:
            yield bad_variable(f"{name}: torch has no option {key!r}, so it stops", f"remove {key}", Level.fail)
        elif key in WHOLE_NUMBERS and not value.isdigit() and re.match(r"[+-]?\d", value):
            what = f"{name}: {key}:{value} is not a whole number; torch only reads the first digits"
            yield bad_variable(what, f"remove {key}")
        elif why := _wrong_value(key, value, least):
            what = f"{name}: {key}:{value} {why}, so torch stops"
            yield bad_variable(what, f"use a valid value, or remove {key}", Level.fail)
    better = "remove it; expandable_segments:True handles fragmentation better"
    if split.isdigit() and int(split) < least:
        what = f"{name}: max_split_size_mb:{split} is below {least}, so torch raises at the first tensor"
        yield bad_variable(what, better, Level.fail)
    elif split.isdigit() and int(split) < SMALL_SPLIT_MB:
        kept = "keeps larger blocks from being reused for smaller tensors: more memory, more cudaMalloc"
        yield bad_variable(f"{name}: max_split_size_mb:{split} {kept}", better)
    on = {key for key in NATIVE_ONLY if key in options and options[key].lower() != "false"}
    if options.get("backend") == "cudaMallocAsync" and on:
        what = f"{name}: backend:cudaMallocAsync excludes {', '.join(sorted(on))}: the driver's allocator ignores them"
        yield bad_variable(what, "remove one or the other; expandable_segments:True alone is right here")
    elif {"expandable_segments", "max_split_size_mb"} <= on:
        both = "max_split_size_mb and expandable_segments:True both handle fragmentation"
        what = f"{name}: {both}, and the limit keeps segments from being reused"
        yield bad_variable(what, "remove max_split_size_mb")
    if uncached and "expandable_segments" in on:
        what = f"{name}: PYTORCH_NO_CUDA_MEMORY_CACHING disables all of it"
        yield bad_variable(what, "unset PYTORCH_NO_CUDA_MEMORY_CACHING")


def _wrong_value(key: str, value: str, least: int) -> str:
    """Why torch's parser refuses a value, or "". `least` is the size of the large segment in MB."""
    if key in SWITCHES:
        return "" if value in ("True", "False") else "must be True or False, in this spelling"
    if key in WHOLE_NUMBERS:
        return _wrong_count(key, value, least)
    if key == "backend":
        return "" if value in BACKENDS else f"must be {' or '.join(BACKENDS)}"
    if key == "roundup_power2_divisions":
        listed = re.fullmatch(r"\[((?:(?:\d+|>):\d+,?)+)\]", value)
        parts = re.findall(r":(\d+)", listed[1]) if listed else [value]
        right = all(part.isdigit() and (int(part).bit_count() == 1 or (listed and int(part) == 0)) for part in parts)
        return "" if right else "must be a power of 2, or a list like [256:1,512:2,>:4]"
    try:
        share = float(value)
    except ValueError:
        return "must be a number"
    if key == "garbage_collection_threshold":
        return "" if 0 < share < 1 else "must be between 0 and 1"
    return "" if 0 <= share <= 1 else "must be from 0 to 1"


def _wrong_count(key: str, value: str, segment_mb: int) -> str:
    if not value.isdigit():
        return "must be a whole number"
    number = int(value)
    if key == "pinned_num_register_threads":
        right = number.bit_count() == 1 and number <= MOST_REGISTER_THREADS
        return "" if right else f"must be a power of 2 of at most {MOST_REGISTER_THREADS}"
    least = {
        "large_segment_size_mb": LEAST_SEGMENT_MB,
        "max_non_split_rounding_mb": segment_mb,
        "pinned_reserve_segment_size_mb": 1,
    }.get(key, 0)
    return "" if number >= least else f"must be at least {least}"
