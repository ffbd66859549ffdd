"""All workers meet before TensorFlow starts, and train only if they agree.

TensorFlow waits for an hour, in silence, for a worker that never comes; and workers that differ in
a flag or in a version train, to a model that nobody asked for. So the workers first talk to each
other over the addresses that TensorFlow will use, with plain sockets, one JSON object a line:

    worker -> chief    {"lbsgd": "report", "task_index": I, "workers": [...], "facts": {...}, ...}
    chief  -> worker   {"lbsgd": "token", "name": NAME}       a file the chief wrote
    worker -> chief    {"lbsgd": "token", "is_seen": true}    the run folder is a shared one
    chief  -> worker   {"lbsgd": "waiting", "for": [...]}     as long as workers are missing
    chief  => worker   {"lbsgd": "who"}                       to the worker's own address
    worker => chief    {"lbsgd": "i am", "task_index": I}     it is reachable under it
    chief  -> worker   {"lbsgd": "verdict", "problems": [...], "warnings": [...]}

All get the same verdict. A worker that cannot start comes as well, to say why: its report has a
"refusal", or as the chief it makes that its verdict. Whatever else connects to a port is ignored.
"""

import asyncio
import contextlib
import dataclasses
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from tf_lbsgd.workers.cluster import Cluster

_LARGEST_LINE = 2**20  # bytes
_ANSWER_SECS = 10.0  # a worker that is there answers at once
_RETRY_SECS = 0.2
_REMIND_SECS = 10.0
_REFUSAL_SECS = 5.0  # workers of one command start within seconds
_LARGEST_CLOCK_SKEW_SECS = 5.0

_Message = dict[str, Any]


class MeetingError(ValueError):
    """The workers cannot train together; the message names workers and fields."""


@dataclasses.dataclass(frozen=True)
class Meeting:
    """One worker's part in the meeting.

    Attributes:
        cluster: The workers; this process is one of them.
        facts: What must be the same on all workers, by name.
        shared_folder: The run folder, which all must see; made by the chief.
        timeout_secs: How long to wait for the others.
        say: Takes a line for whoever waits.
        refusal: Why this worker cannot start; empty: it can.
    """

    cluster: Cluster
    facts: Mapping[str, str]
    shared_folder: Path
    timeout_secs: float
    say: Callable[[str], None] = print
    refusal: str = ""

    def meet(self) -> list[str]:
        """Returns warnings when all workers are there and agree; frees the port again.

        Raises:
            MeetingError: says which worker differs in what, or which one did not come.
        """
        verdict = asyncio.run(self._lead() if self.cluster.is_chief else self._follow())
        if verdict["problems"]:
            raise MeetingError("\n".join(verdict["problems"]))
        return verdict["warnings"]

    async def _lead(self) -> _Message:
        """The chief's part."""
        meeting = _Attendance(self)
        async with _token_file(self) as meeting.token:
            async with _listening(self.cluster, meeting.receive):
                await self._wait_for(meeting)
                problems = meeting.problems() or await self._unreachable(meeting)
                verdict = {"problems": problems, "warnings": meeting.warnings()}
            # The port is closed now: who has the verdict may start TensorFlow and call it.
            await meeting.send_to_all("verdict", verdict)
            await meeting.until_all_have_left()
        return verdict

    async def _wait_for(self, meeting: "_Attendance") -> None:
        deadline = time.monotonic() + self.timeout_secs
        reminder = time.monotonic() + _REMIND_SECS
        while meeting.missing() and time.monotonic() < deadline:
            if meeting.problems(are_all_there=False):
                deadline = min(deadline, time.monotonic() + _ANSWER_SECS)
            if time.monotonic() > reminder:
                reminder += _REMIND_SECS
                names = ", ".join(self._name(index) for index in meeting.missing())
                self.say(f"Waiting for {names}, up to {deadline - time.monotonic():.0f} s more")
                await meeting.send_to_all("waiting", {"for": names})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(meeting.news.wait(), _RETRY_SECS)
            meeting.news.clear()

    async def _unreachable(self, meeting: "_Attendance") -> list[str]:
        """Calls every worker under its own address, as TensorFlow will."""
        indices = range(1, self.cluster.num_workers)
        problems = await asyncio.gather(*(self._call(index) for index in indices))
        return [problem for problem in problems if problem]

    async def _call(self, task_index: int) -> str:
        try:
            async with asyncio.timeout(_ANSWER_SECS):
                reader, writer = await _connect(self.cluster.workers[task_index])
                with contextlib.closing(writer):
                    await _send(writer, "who", {})
                    answer = await _receive(reader, "i am")
        except (OSError, ValueError) as error:
            return (
                f"The chief cannot reach {self._name(task_index)}. Received: {_reason(error)} "
                "Expected: every worker can connect to every other one, on the ports of the "
                "cluster; look at firewalls and at what the name resolves to."
            )
        if answer.get("task_index") != task_index:
            return (
                f"Under the address of {self._name(task_index)} another worker answers. "
                f"Received: {answer.get('task_index')} Expected: {task_index}"
            )
        return ""

    async def _follow(self) -> _Message:
        """The part of a worker that is not the chief."""
        deadline = time.monotonic() + self.timeout_secs
        async with _listening(self.cluster, self._say_who):
            reason = ""
            while time.monotonic() < deadline:
                try:
                    return await self._attend(deadline)
                except (OSError, ValueError) as error:
                    reason = _reason(error)
                await asyncio.sleep(_RETRY_SECS)
        raise MeetingError(
            f"{self._name(0)}, the chief, does not answer {self._name(self.cluster.task_index)}. "
            f"Received: {reason} for {self.timeout_secs:.0f} s. Expected: the same command runs on "
            "every worker, and its address is right; --startup_timeout_secs says how long to wait."
        )

    async def _attend(self, deadline: float) -> _Message:
        """Reports to the chief and waits for its verdict."""
        async with asyncio.timeout(_ANSWER_SECS):
            reader, writer = await _connect(self.cluster.workers[0])
        with contextlib.closing(writer):
            async with asyncio.timeout(_ANSWER_SECS):
                await _send(writer, "report", self._report())
                token = await _receive(reader, "token")
                await _send(writer, "token", {"is_seen": await self._sees(str(token["name"]))})
            # The chief gives up by its own clock, and says so to those that are there.
            async with asyncio.timeout_at(
                asyncio.get_running_loop().time() + deadline - time.monotonic() + _ANSWER_SECS * 3
            ):
                while (message := await _receive(reader, "waiting", "verdict")).get("for"):
                    self.say(f"Waiting for {message['for']}")
                return message

    async def _sees(self, name: str) -> bool:
        """Whether the chief's file is in the run folder; who does not start need not look."""
        return not name or bool(self.refusal) or await _appears(self.shared_folder / name)

    async def _say_who(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _receive(reader, "who")
        await _send(writer, "i am", {"task_index": self.cluster.task_index})
        await reader.read()  # who called closes: the port must not be left in TIME_WAIT

    def _report(self) -> _Message:
        return {
            "task_index": self.cluster.task_index,
            "workers": list(self.cluster.workers),
            "facts": dict(self.facts),
            "refusal": self.refusal,
            "time": time.time(),
        }

    def _name(self, task_index: int) -> str:
        return f"Worker {task_index} ({self.cluster.workers[task_index]})"


class _Attendance:
    """What the chief knows of the others.

    Attributes:
        token: Name of the file in the shared folder that all should see.
        news: Set when something has changed.
    """

    def __init__(self, preflight: Meeting) -> None:
        self._preflight = preflight
        self._cluster = preflight.cluster
        self._misfits: list[str] = []
        self._reports: dict[int, _Message] = {}
        self._connections: set[asyncio.StreamWriter] = set()  # of workers, not of strangers
        self.token = ""
        self.news = asyncio.Event()

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes one worker's report, and stays until it closes the connection."""
        async with asyncio.timeout(_ANSWER_SECS):
            report = await _receive(reader, "report")
            await _send(writer, "token", {"name": self.token})
            report["is_seen"] = (await _receive(reader, "token"))["is_seen"]
        report["skew_secs"] = time.time() - float(report["time"])
        self._connections.add(writer)
        if misfit := self._misfit(report):
            self._misfits.append(misfit)
        else:
            self._reports[report["task_index"]] = report
        self.news.set()
        await reader.read()
        self._connections.discard(writer)
        if self._reports.get(report["task_index"]) is report:  # it may come again
            del self._reports[report["task_index"]]

    def missing(self) -> list[int]:
        """Indices of the workers that have not come, or have gone."""
        return [i for i in range(1, self._cluster.num_workers) if i not in self._reports]

    def problems(self, *, are_all_there: bool = True) -> list[str]:
        """Sentences about what does not fit, among the workers that are there if not all are."""
        if self._preflight.refusal:
            return [f"{self._name(0)}, the chief, cannot start. {self._preflight.refusal}"]
        found = list(self._misfits)
        for index, report in sorted(self._reports.items()):
            found += self._differences(index, report)
        if are_all_there:
            found += [
                f"{self._name(index)} did not come. Received: nothing from it within "
                f"{self._preflight.timeout_secs:.0f} s Expected: the same command runs on every "
                "worker; see its log, and --startup_timeout_secs."
                for index in self.missing()
            ]
        return found

    def warnings(self) -> list[str]:
        """Sentences about what does not stop a run."""
        return [
            f"The clock of {self._name(index)} differs from the chief's by "
            f"{-report['skew_secs']:.0f} s: times in logs cannot be compared."
            for index, report in sorted(self._reports.items())
            if abs(report["skew_secs"]) > _LARGEST_CLOCK_SKEW_SECS
        ]

    async def send_to_all(self, kind: str, message: _Message) -> None:
        """Sends a message to all workers that are there."""
        for writer in list(self._connections):
            with contextlib.suppress(OSError):
                await _send(writer, kind, message)

    async def until_all_have_left(self) -> None:
        """Waits for the workers to close, so that no port of the chief stays in TIME_WAIT."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_SECS):
                while self._connections:
                    await asyncio.sleep(0.01)

    def _misfit(self, report: _Message) -> str:
        index, workers = report["task_index"], report["workers"]
        if workers != list(self._cluster.workers):
            return (
                f"Worker {index} has another list of workers than the chief. "
                f"Received: {workers} Expected: {list(self._cluster.workers)}"
            )
        if index == 0 or index in self._reports:
            return (
                f"Two processes are {self._name(index)}. Received: task index {index} twice "
                "Expected: every process has its own."
            )
        return ""

    def _differences(self, index: int, report: _Message) -> list[str]:
        if report["refusal"]:
            return [f"{self._name(index)} cannot start. {report['refusal']}"]
        theirs, ours = report["facts"], self._preflight.facts
        found = [
            f"{self._name(index)} differs from the chief in {field}. "
            f"Received: {theirs.get(field)} Expected: {ours.get(field)}, as on worker 0"
            for field in sorted({*ours, *theirs})
            if theirs.get(field) != ours.get(field)
        ]
        if not report["is_seen"]:
            found.append(
                f"{self._name(index)} does not see the chief's run folder. Received: no "
                f"{self.token} in {self._preflight.shared_folder} there Expected: a --run_dir on "
                "a file system that all workers share."
            )
        return found

    def _name(self, task_index: int) -> str:
        return f"Worker {task_index} ({self._cluster.workers[task_index]})"


def refuse(cluster: Cluster, reason: str) -> None:
    """Tells the other workers, those that come within 5 s, why this one does not start.

    Otherwise they would wait for it, and not learn more than that it did not come.
    """
    if not cluster.is_multi_worker:
        return
    nothing_shared, nobody = Path(), lambda _: None
    part = Meeting(cluster, {}, nothing_shared, _REFUSAL_SECS, say=nobody, refusal=reason)
    with contextlib.suppress(MeetingError):  # our own refusal, or nobody is there
        part.meet()


def check_port_is_free(cluster: Cluster) -> None:
    """Makes sure that this worker can listen on its port.

    Raises:
        MeetingError: names the port, and the process that has it where that can be told.
    """
    _open_port(cluster).close()


def _open_port(cluster: Cluster) -> socket.socket:
    """Returns a listening socket on this worker's port, on every interface as TensorFlow's is."""
    port = _port_of(cluster.workers[cluster.task_index])
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise MeetingError(
            f"Worker {cluster.task_index} ({cluster.address}) cannot listen on its port {port}. "
            f"Received: {error.strerror}{_holder_of(port)} Expected: a free port; end the process "
            "that has it, or give the cluster other ports."
        ) from error


def _holder_of(port: int) -> str:
    """Says which process listens on a port, if this user may know."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            is_holder = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if is_holder and connection.pid is not None:
                return f" (by process {connection.pid}, {psutil.Process(connection.pid).name()})"
    return ""


@contextlib.asynccontextmanager
async def _listening(
    cluster: Cluster,
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> AsyncIterator[None]:
    """Answers on this worker's port; a connection that sends anything unexpected is dropped."""

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(guarded, sock=_open_port(cluster), limit=_LARGEST_LINE)
    try:
        yield
    finally:
        server.close()


@contextlib.asynccontextmanager
async def _token_file(preflight: Meeting) -> AsyncIterator[str]:
    """Puts a file that nobody could guess into the shared folder, for the time of the block."""
    if preflight.refusal:
        yield ""
        return
    name = f".preflight-{uuid.uuid4().hex}"
    path = preflight.shared_folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        yield name
    finally:
        path.unlink(missing_ok=True)


async def _appears(path: Path) -> bool:
    """Whether a file is seen soon; a network file system may take its time."""
    deadline = time.monotonic() + _ANSWER_SECS / 2
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_RETRY_SECS)
    return True


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host = address.rpartition(":")[0].strip("[]")
    return await asyncio.open_connection(host, _port_of(address), limit=_LARGEST_LINE)


async def _send(writer: asyncio.StreamWriter, kind: str, message: _Message) -> None:
    writer.write(json.dumps({"lbsgd": kind, **message}).encode() + b"\n")
    await writer.drain()


async def _receive(reader: asyncio.StreamReader, *kinds: str) -> _Message:
    """Returns the next message.

    Raises:
        ValueError: it is not one of ours, or of another kind, or none came.
    """
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise ValueError("the connection was closed")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or message.get("lbsgd") not in kinds:
        raise ValueError(f"{line[:40]!r}, which another program sends")
    return message


def _port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
