"""Finds and opens the addresses on which this worker listens."""

import contextlib
import errno
import ipaddress
import socket

import psutil

from tf_lbsgd.workers.cluster import Cluster, split_address
from tf_lbsgd.workers.exits import StartupError


def check_port_is_free(cluster: Cluster) -> None:
    """Checks that this worker's port is free on every interface.

    TensorFlow's server will listen there.

    Raises:
        StartupError: Names the port, and the process that has it if this user may know it.
    """
    _, port = split_address(cluster.address)
    try:
        if socket.has_dualstack_ipv6():
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
        else:
            socket.create_server(("", port)).close()
    except OSError as error:
        raise StartupError(
            f"{cluster.name_of(cluster.task_index)} cannot listen on its port {port}. "
            f"Received: {error.strerror}{_holder_of(port)} Expected: a free port; end the process "
            "that has it, or give the cluster other ports."
        ) from error


def open_port(cluster: Cluster) -> list[socket.socket]:
    """Opens this worker's port on its own addresses only.

    It opens every interface if none of these addresses is of this host (NAT), or if the name means
    the loopback interface here but other hosts have to reach it.

    Raises:
        StartupError: As in `check_port_is_free`.
    """
    check_port_is_free(cluster)
    _, port = split_address(cluster.address)
    own = own_addresses(cluster)
    hosts = {split_address(address)[0] for address in cluster.workers}
    if not own or (len(hosts) > 1 and all(ipaddress.ip_address(ip).is_loopback for ip in own)):
        if not socket.has_dualstack_ipv6():
            return [socket.create_server(("", port))]
        return [socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)]
    return [socket.create_server((ip, port), family=_family(ip)) for ip in own]


def own_addresses(cluster: Cluster) -> list[str]:
    """Returns this worker's IP addresses on this host.

    Its name leads to them. The list is empty if the name leads to another host, or nowhere.
    """
    host, _ = split_address(cluster.address)
    with contextlib.suppress(OSError, UnicodeError):
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
        return sorted(ip for ip in found if _is_of_this_host(ip))
    return []


def _is_of_this_host(ip: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(_family(ip)) as sock:
        try:
            sock.bind((ip, 0))
        except OSError as error:
            return error.errno not in (errno.EADDRNOTAVAIL, errno.EINVAL)
        return True
    return False


def _family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def _holder_of(port: int) -> str:
    """Names the process on a port, if that is known."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            is_holder = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if is_holder and connection.pid is not None:
                return f" (by process {connection.pid}, {psutil.Process(connection.pid).name()})"
    return ""
