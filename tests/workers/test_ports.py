"""The addresses on which a worker listens."""

import socket

import pytest

from tf_lbsgd.workers import ports
from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import StartupError
from tf_lbsgd.workers.launcher import free_ports


def hosts_opened(cluster: Cluster) -> set[str]:
    sockets = ports.open_port(cluster)
    names = {sock.getsockname()[0] for sock in sockets}
    for sock in sockets:
        sock.close()
    return names


EVERY = {"::"} if socket.has_dualstack_ipv6() else {"0.0.0.0"}


@pytest.mark.parametrize(
    ("own", "other", "hosts"),
    [
        pytest.param("127.0.0.1", "127.0.0.1", {"127.0.0.1"}, id="one host"),
        pytest.param("127.0.0.1", "192.0.2.1", EVERY, id="a loopback name that others must reach"),
        pytest.param("192.0.2.1", "192.0.2.2", EVERY, id="of another host: NAT"),
        pytest.param("no-such-host.invalid", "192.0.2.2", EVERY, id="a name that leads nowhere"),
    ],
)
def test_a_worker_listens_on_its_own_addresses(own, other, hosts):
    first, second = free_ports(2)
    assert hosts_opened(Cluster((f"{own}:{first}", f"{other}:{second}"))) == hosts


def test_a_port_must_be_free_on_every_interface():
    (port,) = free_ports(1)
    with (
        socket.create_server(("127.0.0.2", port)),
        pytest.raises(StartupError, match=f"cannot listen on its port {port}"),
    ):
        ports.open_port(Cluster((f"127.0.0.1:{port}",)))
