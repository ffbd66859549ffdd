"""Callers that do not belong to a run, for tests of the meeting."""

import socket
import time


def connected(address: str) -> socket.socket:
    """Returns a connection to "localhost:port", as soon as someone listens there."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(("localhost", int(address.split(":")[1])))
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
