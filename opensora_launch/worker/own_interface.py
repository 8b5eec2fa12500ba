"""The network on which ranks find each other where the names of nodes lead nowhere."""

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback  # "fe80::1%eth0"


def address_of(host: str) -> str:
    """The first address of a name; "" if it has none."""
    with suppress(OSError):
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    return ""


def interface_towards(host: str) -> str | None:
    """The interface by which this node reaches a host, or which has its address if it is this node; None if unknown."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 1))  # chooses a route and sends nothing
        for address in (probe.getsockname()[0], address_of(host)):
            found = [name for _, name in socket.if_nameindex() if _address(probe, name) == address]
            if found and not is_loopback(address):
                return found[0]
    return None


def _address(any_socket: socket.socket, interface: str) -> str:
    with suppress(OSError):
        answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", interface.encode()))
        return socket.inet_ntoa(answer[20:24])
    return ""
