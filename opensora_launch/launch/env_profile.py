"""Change the ranks' environment by a profile (config group `env`), and record what changed."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opensora_launch.schema.ranks_env import EnvConfig
from opensora_launch.slurm.script import VARIABLE_NAME, assignment_problems

RECORDED = ("CUDA_", "NCCL_", "TORCH_", "PYTORCH_", "OMP_", "MKL_", "GLOO_", "NVIDIA_")  # never a secret
SAME = {"PYTORCH_CUDA_ALLOC_CONF": "PYTORCH_ALLOC_CONF"}  # two names of one setting


@dataclass(frozen=True)
class Profiled:
    """An environment, and its differences from the launcher's own."""

    profile: str
    env: dict[str, str]
    was_set: dict[str, str]  # set by the profile
    taken: dict[str, str]  # removed by the profile, with their old values
    kept: dict[str, str]  # the user's own values of variables that the profile would have set

    def to_json(self, ranks_env: Mapping[str, str]) -> str:
        """The text of environment.json: what was changed, and the relevant variables as the ranks see them."""
        relevant = {name: value for name, value in sorted(ranks_env.items()) if name.startswith(RECORDED)}
        record: dict[str, Any] = {
            "profile": self.profile,
            "set": self.was_set,
            "taken_away": self.taken,
            "kept": self.kept,
            "environment": relevant,
        }
        return json.dumps(record, ensure_ascii=False, indent=1) + "\n"


def profile_problems(config: EnvConfig) -> list[str]:
    """Every entry that is not an assignment or not a name."""
    return assignment_problems("env.set", config.set) + [
        f"env.unset: {name!r} is not the name of a variable"
        for name in config.unset
        if not VARIABLE_NAME.fullmatch(name)
    ]


def profiled(base: Mapping[str, str], config: EnvConfig) -> Profiled:
    """Apply a profile to `base`: remove variables, and set those that the user has not set."""
    env = dict(base)
    taken = {name: env.pop(name) for name in config.unset if name in env}
    was_set, kept = {}, {}
    for entry in config.set:
        name, _, value = entry.partition("=")
        own = next((other for other in (name, SAME.get(name, name)) if env.get(other)), None)
        if own is None:
            env[name] = was_set[name] = value
        elif env[own] != value:
            kept[own] = env[own]
    return Profiled(config.profile, env, was_set, taken, kept)


@contextmanager
def applied(env: Mapping[str, str]) -> Iterator[None]:
    """Give this process the environment of a rank, and restore its own at the end."""
    before = dict(os.environ)
    _replace_environment(env)
    try:
        yield
    finally:
        _replace_environment(before)


def _replace_environment(env: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(env):
        del os.environ[name]
    os.environ.update(env)
