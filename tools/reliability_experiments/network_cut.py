"""Cuts the network of a run for a while.

    python network_cut.py PID SECONDS

It takes down the loopback interface in the network namespace of a process, which must not be that
of this process.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys
import time

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def enter_namespaces_of(pid: int) -> None:
    """Moves this process into the network of another one.

    Raises:
        RuntimeError: It is the same network.
        OSError: The system does not allow it.
    """
    if os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        raise RuntimeError(f"Process {pid} has no network of its own, so it is not cut.")
    libc = ctypes.CDLL(None, use_errno=True)
    for name in ("user", "net"):
        path = f"/proc/{pid}/ns/{name}"
        if os.readlink(path) == os.readlink(f"/proc/self/ns/{name}"):
            continue
        descriptor = os.open(path, os.O_RDONLY)
        if libc.setns(descriptor, 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def set_loopback(flags: int) -> None:
    """Takes the loopback interface up or down."""
    with socket.socket() as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))


if __name__ == "__main__":
    enter_namespaces_of(int(sys.argv[1]))
    set_loopback(0)
    time.sleep(float(sys.argv[2]))
    set_loopback(_IFF_UP)
