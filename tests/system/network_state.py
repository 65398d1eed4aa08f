"""Prints all that the kernel says of the network namespace that it runs in, as JSON.

With arguments, changes settings of a device instead: `network_state.py offloads DEVICE`,
or `checksums`.
"""

import ctypes
import fcntl
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

SIOCETHTOOL = 0x8946
GET_FEATURES, SET_FEATURES, GET_CHANNELS, SET_CHANNELS = 0x3A, 0x3B, 0x3C, 0x3D
SET_TX_CHECKSUM = 0x17
# What differs from boot to boot, or from moment to moment, of a machine too.
TRANSIENT_LINK = {"ifindex", "link_index", "link_netnsid", "operstate", "linkmode"}
TRANSIENT_SYSCTL = (
    "nf_conntrack_count",
    "tcp_fastopen_key",
    "stable_secret",
    "/flush",
    "nf_conntrack_buckets",
)


def ethtool(device: str, words: list[int]) -> list[int]:
    """One request of ethtool's."""
    buffer = ctypes.create_string_buffer(struct.pack(f"{len(words)}I", *words))
    request = bytearray(struct.pack("16sP16x", device.encode(), ctypes.addressof(buffer)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, request)
    return list(struct.unpack_from(f"{len(words)}I", buffer.raw))


def features(device: str) -> list[int]:
    """Blocks of four words: what can be changed, is wished for, is so, never changes."""
    return ethtool(device, [GET_FEATURES, 2] + [0] * 8)[2:]


def channels(device: str) -> list[int]:
    """Most and present numbers of queues, of a device that has such."""
    try:
        return ethtool(device, [GET_CHANNELS] + [0] * 8)
    except OSError:
        return []


def asked(*command: str):
    """What a program says, as JSON."""
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(text or "[]")


def sysctls() -> dict[str, str]:
    """Everything below /proc/sys/net."""
    found = {}
    for path in sorted(Path("/proc/sys/net").rglob("*")):
        if not path.is_file() or any(name in str(path) for name in TRANSIENT_SYSCTL):
            continue
        try:
            found[str(path)] = path.read_text()
        except OSError:
            found[str(path)] = None
    return found


def state() -> dict:
    """All of it."""
    links = asked("ip", "-d", "-j", "link")
    names = [link["ifname"] for link in links if link["ifname"] != "lo"]
    addresses = [[link["ifname"], info] for link in asked("ip", "-j", "addr") for info in link["addr_info"]]
    return {
        "links": [{k: v for k, v in link.items() if k not in TRANSIENT_LINK} for link in links],
        "addresses": addresses,
        "routes": [
            sorted(asked("ip", f"-{n}", "-j", "route", "show", "table", "all"), key=json.dumps)
            for n in (4, 6)
        ],
        "rules": [asked("ip", f"-{n}", "-j", "rule") for n in (4, 6)],
        "nft": subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout,
        "queueing": asked("tc", "-j", "qdisc"),
        "features": [features(name) for name in names],
        "channels": [channels(name) for name in names],
        "sysctls": sysctls(),
    }


def change_offloads(device: str) -> None:
    """Takes all features that can be taken, and gives it two queues each way."""
    changeable = features(device)[0::4]
    ethtool(device, [SET_FEATURES, 2, changeable[0], 0, changeable[1], 0])
    most = channels(device)[1:5]
    ethtool(device, [SET_CHANNELS, *most, min(2, most[0]), min(2, most[1]), 0, 0])


if __name__ == "__main__":
    if sys.argv[1:2] == ["offloads"]:
        change_offloads(sys.argv[2])
    elif sys.argv[1:2] == ["checksums"]:
        # `ethtool -K … tx on`
        ethtool(sys.argv[2], [SET_TX_CHECKSUM, 1])
    else:
        print(json.dumps(state(), sort_keys=True))
