"""Gives this process and its children a private loopback network.

TensorFlow's gRPC server takes commands from anyone, without a password, and listens on every
interface whatever TF_CONFIG says (see TensorFlow's SECURITY.md). If all workers are on one machine,
no one outside needs to reach it. See network_namespaces(7), user_namespaces(7), netdevice(7).
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

from tf_lbsgd.workers import system

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def enter_loopback_network() -> None:
    """Moves this process into a new network namespace.

    The process must have only one thread. Afterwards its sockets reach only itself and its
    children. To make a network namespace takes CAP_SYS_ADMIN. A process without it makes a user
    namespace too, in which it has that right and its user stays the same.

    Raises:
        ValueError: The system is not Linux.
        OSError: The system does not allow it. Nothing has changed.
    """
    system.require_linux("Network namespaces")
    _try_in_a_child()
    _enter()


def _enter() -> None:
    user, group = os.geteuid(), os.getegid()
    try:
        _unshare(_CLONE_NEWNET)
    except PermissionError:
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket() as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def try_to_isolate() -> None:
    """Calls `enter_loopback_network`, and warns where that is not allowed."""
    try:
        enter_loopback_network()
    except OSError as error:
        print(
            f"Warning: the workers' ports are open to the network, without a password ({error}). "
            "See docs/operations.md. If you want that, set --isolate_network=false.",
            file=sys.stderr,
        )


def _try_in_a_child() -> None:
    """Raises OSError if any part of it is not allowed.

    Some systems refuse only the last part.
    """
    child = os.fork()
    if child == 0:
        try:
            _enter()
        except OSError as error:
            os._exit(error.errno or errno.EPERM)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if number := os.waitstatus_to_exitcode(status):
        raise OSError(number, os.strerror(number))


def _unshare(namespaces: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(namespaces) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
