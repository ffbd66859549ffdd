"""A network with the loopback interface alone, entered by real processes."""

import os
import socket
import subprocess
import sys

import pytest

# Imports come first: an ordinary user may not be allowed to read this Python's files.
PROGRAM = """
import ctypes, os, socket, sys
from tf_lbsgd.workers import network_namespace
port, user = int(sys.argv[1]), int(sys.argv[2])
socket.create_connection(("127.0.0.1", port), 5).close()
if user != os.geteuid():
    os.setgid(user); os.setuid(user)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: as a process that began as this user
try:
    network_namespace.enter_loopback_network()
except OSError as error:
    print("not allowed", error)
    socket.create_connection(("127.0.0.1", port), 5).close()  # nothing has changed
    sys.exit()
server = socket.create_server(("", 0))
socket.create_connection(("127.0.0.1", server.getsockname()[1]), 5).close()
names = [name for _, name in socket.if_nameindex()]
for address in (("127.0.0.1", port), ("192.0.2.1", 80)):
    try:
        socket.create_connection(address, 5)
        print("reached", address)
    except OSError:
        pass
print("isolated", "lo" in names, os.geteuid(), flush=True)
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("user", [os.geteuid(), 65534], ids=["this user", "an ordinary user"])
def test_inside_only_itself_is_reached_and_outside_it_is_not(user):
    if user != os.geteuid() and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with socket.create_server(("127.0.0.1", 0)) as outside:
        arguments = [str(outside.getsockname()[1]), str(user)]
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            outcome = process.stdout.readline()
            if outcome.startswith("not allowed"):
                pytest.skip(f"this system does not allow it: {outcome}")
            assert outcome == f"isolated True {user}\n"
            port = int(process.stdout.readline())
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 5)
            process.stdin.close()
    assert process.returncode == 0


def test_where_it_is_not_allowed_a_warning_says_so():
    program = (
        "from tf_lbsgd.workers import network_namespace as n\n"
        "def refuse(_): raise PermissionError(1, 'Operation not permitted')\n"
        "n._unshare = refuse\nn.try_to_isolate()\nprint('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "goes on\n"
    assert done.stderr.startswith("Warning: the workers' ports are open to the network")
    assert "Operation not permitted" in done.stderr
