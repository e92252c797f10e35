"""Runs a command where no other machine can be reached, and says what it tried to send.

    unshare --map-root-user --net --mount python dead_end.py REPORT [--no-route] COMMAND...

All packets, those to a name server too, go to an interface that answers nothing; the report gets a
line for each. With --no-route there is no such interface: sending fails at once.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_KINDS = {1: "ICMP", 6: "TCP", 17: "UDP"}
UNAVAILABLE = 77


def _setup(*words: str) -> None:
    if subprocess.run(words, check=False).returncode:
        sys.exit(UNAVAILABLE)


def open_dead_end() -> int:
    """Make a default route into a device of ours, and return the device."""
    try:
        device = os.open("/dev/net/tun", os.O_RDWR)
        request = struct.pack("16sH", b"dead0", _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(device, _TUNSETIFF, request)
        Path("/proc/sys/net/ipv6/conf/dead0/disable_ipv6").write_text("1")  # the kernel's own
    except OSError as error:
        sys.stderr.write(f"no device that records what is sent: {error}\n")
        sys.exit(UNAVAILABLE)
    _setup("ip", "address", "add", "10.99.0.1/24", "dev", "dead0")
    _setup("ip", "link", "set", "dead0", "up")
    _setup("ip", "route", "add", "default", "via", "10.99.0.2")
    names = Path("resolv.conf").absolute()  # one of this machine would not be seen
    names.write_text("nameserver 10.99.0.2\noptions timeout:1 attempts:1\n")
    _setup("mount", "--bind", str(names), os.path.realpath("/etc/resolv.conf"))
    return device


def record(device: int, report: Path) -> None:
    """Write a line for each packet."""
    while packet := os.read(device, 65536):
        kind = _KINDS.get(packet[9], str(packet[9]))
        port = int.from_bytes(packet[22:24], "big")
        to = ".".join(str(byte) for byte in packet[16:20])
        with report.open("a") as file:
            file.write(f"{kind} to {to} port {port}: {packet[28:100]!r}\n")


def main(report: str, *command: str) -> int:
    """Run the command and return its exit code."""
    _setup("ip", "link", "set", "lo", "up")
    if command[0] == "--no-route":
        command = command[1:]
    else:
        device = open_dead_end()
        threading.Thread(target=record, args=(device, Path(report)), daemon=True).start()
    Path(report).touch()
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
