"""The tool that measures steps over shaped links, on a small model and with real links."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from commands import run_tool
from network_benchmark import links

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "taskset"))),
        reason="needs root, ip, tc and taskset",
    ),
]
SERVER = """
import socket, time
listening = socket.create_server(("0.0.0.0", 9999))
print("ready", flush=True)
connection, _ = listening.accept()
received, start = 0, time.monotonic()
while part := connection.recv(1 << 20):
    received += len(part)
print(8 * received / (time.monotonic() - start) / 1e9)
"""
CLIENT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 9999))
for _ in range(50):
    connection.sendall(bytes(1 << 20))
"""


def in_namespace(worker, *command):
    return ["ip", "netns", "exec", links.namespace(worker), sys.executable, "-c", *command]


def namespaces():
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith("lbsgd-net")]


def test_a_link_has_its_rate_and_leaves_nothing():
    with links.network(2, gbits_per_second=1.0):
        assert len(namespaces()) == 3
        server = subprocess.Popen(in_namespace(0, SERVER), stdout=subprocess.PIPE, text=True)
        assert server.stdout.readline() == "ready\n"
        subprocess.run(in_namespace(1, CLIENT, links.address(0)), check=True)
        gbits_per_second = float(server.communicate()[0])
    assert 0.5 < gbits_per_second < 1.05
    assert namespaces() == []


def test_the_table_has_each_link_and_leaves_nothing():
    measured = run_tool(
        *("benchmark_network", "--image_size=32", "--batch=4", "--micro_batch_size=4"),
        *("--steps=2", "--repetitions=1", "--links=unshaped,1"),
    )
    assert measured.returncode == 0, measured.stderr
    rows = re.findall(
        r"^\| ours \| (\w+) \| [\d.]+ \| [\d.]+ \| (\d+) % \|$", measured.stdout, re.M
    )
    assert [link for link, _ in rows] == ["apart", "unshaped", "1"]
    assert rows[0] == ("apart", "100")
    assert namespaces() == []
