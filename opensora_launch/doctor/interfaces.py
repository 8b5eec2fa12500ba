"""Check the environment variables that name a network interface against the interfaces of this host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opensora_launch.doctor.check_result import CheckResult, Level, bad_variable
from opensora_launch.machine.processes import text_of

SYS_NET, SYS_INFINIBAND = Path("/sys/class/net"), Path("/sys/class/infiniband")
LOCAL = ("lo", "docker", "veth", "br-", "virbr")  # these reach no other host


@dataclass(frozen=True)
class Interface:
    name: str
    up: bool


def interfaces(root: Path = SYS_NET) -> tuple[Interface, ...]:
    """The interfaces of this host, ordered by name; none if /sys cannot be read."""
    try:
        return tuple(Interface(path.name, _is_up(path)) for path in sorted(root.iterdir()))
    except OSError:
        return ()


def infiniband_up(root: Path = SYS_INFINIBAND) -> bool:
    """Whether any port of an InfiniBand or RoCE card is active."""
    return any("ACTIVE" in text_of(state) for state in root.glob("*/ports/*/state"))


def nccl_matches(spec: str, names: Sequence[str]) -> list[str]:
    """The interfaces that NCCL_SOCKET_IFNAME selects: prefixes; with `=` exact names; with `^` all others."""
    exclude = spec.startswith("^")
    exact = spec.removeprefix("^").startswith("=")
    wanted = [part for part in spec.lstrip("^=").split(",") if part]
    matches = str.__eq__ if exact else str.startswith
    return [name for name in names if any(matches(name, part) for part in wanted) != exclude]


def check_socket_names(
    env: Mapping[str, str], here: Sequence[Interface], *, nodes: int, gpus: int
) -> list[CheckResult]:
    """Report a name that no interface has, one that is down, and one that reaches no other host."""
    names = [interface.name for interface in here]
    found = []
    for name in ("GLOO_SOCKET_IFNAME", *(["NCCL_SOCKET_IFNAME"] if gpus else [])):
        spec = env.get(name, "").strip()
        if here and spec:
            exact = [n for n in names if n in spec.split(",")]  # gloo takes no prefixes
            found += _one(name, spec, exact if name.startswith("GLOO") else nccl_matches(spec, names), here, nodes)
    return found


def _one(name: str, spec: str, matched: Sequence[str], here: Sequence[Interface], nodes: int) -> list[CheckResult]:
    listed = ", ".join(interface.name for interface in here)
    if not matched:
        what = f"{name}={spec} matches no interface of this host ({listed}): ranks cannot connect"
        return [bad_variable(what, f"unset {name}; the right interface is found automatically", Level.fail)]
    down = [interface.name for interface in here if interface.name in matched and not interface.up]
    if len(down) == len(matched):
        what = f"{name}={spec}: {', '.join(down)} {'is' if len(down) == 1 else 'are'} down"
        return [bad_variable(what, f"unset {name}, or name one that is up")]
    if nodes > 1 and any(m.startswith(LOCAL) for m in matched):
        local = ", ".join(m for m in matched if m.startswith(LOCAL))
        what = f"{name}={spec}: it includes {local}, which reaches no other node"
        return [bad_variable(what, f"unset {name}, or use ^lo,docker0")]
    return []


def _is_up(path: Path) -> bool:
    return text_of(path / "operstate").strip() in ("up", "unknown")  # loopback and tunnels report unknown
