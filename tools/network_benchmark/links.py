"""Makes a network of namespaces with slow links.

Each worker has a network namespace, which a veth pair joins to a bridge in a namespace of its own.
`tc tbf` shapes both directions of each link. It needs root, `ip` and `tc`.
"""

import contextlib
import subprocess
from collections.abc import Iterator

_PREFIX = "lbsgd-net"
_HUB = f"{_PREFIX}-hub"
_BURST_SECS = 0.004  # a tick of a kernel with HZ=250: less would not reach the rate


def namespace(worker: int) -> str:
    """Returns the name of a worker's namespace."""
    return f"{_PREFIX}-{worker}"


def address(worker: int) -> str:
    """Returns the IP address of a worker."""
    return f"10.93.0.{worker + 1}"


@contextlib.contextmanager
def network(num_workers: int, gbits_per_second: float | None) -> Iterator[None]:
    """Makes the namespaces and links for a block.

    Args:
        num_workers: Number of namespaces beside the hub.
        gbits_per_second: Rate of each direction of a link. None: as fast as the machine.

    Raises:
        RuntimeError: `ip` or `tc` failed. The error has its message.
    """
    names = [_HUB, *map(namespace, range(num_workers))]
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            _in(name, "ip", "link", "set", "lo", "up")
        _in(_HUB, "ip", "link", "add", "bridge", "type", "bridge")
        _in(_HUB, "ip", "link", "set", "bridge", "up")
        for worker in range(num_workers):
            _join(worker, gbits_per_second)
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _join(worker: int, gbits_per_second: float | None) -> None:
    name, port = namespace(worker), f"port{worker}"
    _in(_HUB, *f"ip link add {port} type veth peer name eth0 netns {name}".split())
    _in(_HUB, *f"ip link set {port} master bridge up".split())
    _in(name, *f"ip address add {address(worker)}/24 dev eth0".split())
    _in(name, "ip", "link", "set", "eth0", "up")
    if gbits_per_second is not None:
        burst = int(gbits_per_second * 1e9 / 8 * _BURST_SECS)
        shape = f"root tbf rate {gbits_per_second:g}gbit burst {burst} latency 50ms".split()
        _in(name, "tc", "qdisc", "add", "dev", "eth0", *shape)
        _in(_HUB, "tc", "qdisc", "add", "dev", port, *shape)


def _in(name: str, *command: str) -> None:
    _run("ip", "netns", "exec", name, *command)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
