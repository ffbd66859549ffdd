"""Checks that all workers agree, before TensorFlow starts.

This is a rendezvous and a preflight check. TensorFlow waits for an hour, without a message, for a
worker that never comes. Workers that differ in a flag or in a version do train, but to a model
that no one asked for. So the workers first talk to each other over the addresses that TensorFlow
will use, with plain sockets and one JSON object a line:

    worker -> chief    {"lbsgd": "report", "task_index": I, "workers": [...], "facts": {...}, ...}
    chief  -> worker   {"lbsgd": "token", "name": NAME}       the chief wrote this file
    worker -> chief    {"lbsgd": "token", "is_seen": true}    the run folder is shared
    chief  -> worker   {"lbsgd": "waiting", "for": [...]}     while workers are missing
    chief  => worker   {"lbsgd": "who"}                       sent to the address of the worker
    worker => chief    {"lbsgd": "i am", "task_index": I}     the address leads to the worker
    chief  -> worker   {"lbsgd": "verdict", "problems": [...], "warnings": [...]}

All workers get the same verdict. A worker that cannot start also comes, to say why. It puts a
"refusal" into its report. A chief that cannot start makes its refusal the verdict. Connections of
other programs are ignored.
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

from tf_lbsgd.workers.cluster import Cluster, split_address

_LARGEST_LINE = 2**20  # bytes
_ANSWER_SECS = 10.0  # a worker that is there answers at once
_RETRY_SECS = 0.2
_REMIND_SECS = 10.0
_REFUSAL_SECS = 5.0  # workers of one command start within seconds
_LARGEST_CLOCK_SKEW_SECS = 5.0

_Message = dict[str, Any]


class MeetingError(ValueError):
    """The workers cannot train together.

    The message names workers and fields.
    """


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Takes one worker's part in the meeting.

    Attributes:
        cluster: The workers, and which of them this process is.
        facts: Values that must be the same on all workers, by name.
        shared_folder: The run folder. The chief makes it, and all workers must see it.
        timeout_secs: How long to wait for the other workers.
        say: Prints a line for the user who waits.
        refusal: Why this worker cannot start. Empty if it can.
    """

    cluster: Cluster
    facts: Mapping[str, str]
    shared_folder: Path
    timeout_secs: float
    say: Callable[[str], None] = print
    refusal: str = ""

    def meet(self) -> list[str]:
        """Waits until all workers are there and agree.

        The port of this worker is free again afterwards.

        Returns:
            Warnings about differences that do not prevent a run.

        Raises:
            MeetingError: Says which worker differs in what, or which one did not come.
        """
        verdict = asyncio.run(self._lead() if self.cluster.is_chief else self._follow())
        if verdict["problems"]:
            raise MeetingError("\n".join(verdict["problems"]))
        return verdict["warnings"]

    async def _lead(self) -> _Message:
        """Plays the part of the chief."""
        attendance = _Attendance(self)
        async with _token_file(self) as attendance.token:
            async with _listening(self.cluster, attendance.receive):
                await self._wait_for(attendance)
                problems = attendance.problems() or await self._unreachable()
                verdict = {"problems": problems, "warnings": attendance.warnings()}
            # The port is closed now: a worker that has the verdict may start TensorFlow.
            await attendance.send_to_all("verdict", verdict)
            await attendance.until_all_have_left()
        return verdict

    async def _wait_for(self, attendance: "_Attendance") -> None:
        deadline = time.monotonic() + self.timeout_secs
        reminder = time.monotonic() + _REMIND_SECS
        while attendance.missing() and time.monotonic() < deadline:
            if attendance.problems(include_missing=False):
                deadline = min(deadline, time.monotonic() + _ANSWER_SECS)
            if time.monotonic() > reminder:
                reminder += _REMIND_SECS
                names = ", ".join(self.cluster.name_of(index) for index in attendance.missing())
                self.say(f"Waiting for {names}, up to {deadline - time.monotonic():.0f} s more")
                await attendance.send_to_all("waiting", {"for": names})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(attendance.news.wait(), _RETRY_SECS)
            attendance.news.clear()

    async def _unreachable(self) -> list[str]:
        """Calls every worker at its address, as TensorFlow will."""
        indices = range(1, self.cluster.num_workers)
        problems = await asyncio.gather(*(self._call(index) for index in indices))
        return [problem for problem in problems if problem]

    async def _call(self, task_index: int) -> str:
        """Returns what is wrong with the address of a worker.

        The text is empty if nothing is wrong.
        """
        name = self.cluster.name_of(task_index)
        try:
            async with asyncio.timeout(_ANSWER_SECS):
                reader, writer = await _connect(self.cluster.workers[task_index])
                with contextlib.closing(writer):
                    await _send(writer, "who", {})
                    answer = await _receive(reader, "i am")
        except (OSError, ValueError) as error:
            return (
                f"The chief cannot reach {name}. Received: {_reason(error)} "
                "Expected: every worker can connect to every other one, on the ports of the "
                "cluster; look at firewalls and at what the name resolves to."
            )
        if answer.get("task_index") != task_index:
            return (
                f"At the address of {name} another worker answers. "
                f"Received: {answer.get('task_index')} Expected: {task_index}"
            )
        return ""

    async def _follow(self) -> _Message:
        """Plays the part of any other worker."""
        deadline = time.monotonic() + self.timeout_secs
        async with _listening(self.cluster, self._say_who):
            reason = ""
            while time.monotonic() < deadline:
                try:
                    return await self._attend(deadline)
                except (OSError, ValueError) as error:
                    reason = _reason(error)
                await asyncio.sleep(_RETRY_SECS)
        chief, me = self.cluster.name_of(0), self.cluster.name_of(self.cluster.task_index)
        raise MeetingError(
            f"{chief}, the chief, does not answer {me}. "
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
            # The chief has a timeout too, and tells the workers that are there.
            async with asyncio.timeout_at(
                asyncio.get_running_loop().time() + deadline - time.monotonic() + _ANSWER_SECS * 3
            ):
                while (message := await _receive(reader, "waiting", "verdict")).get("for"):
                    self.say(f"Waiting for {message['for']}")
                return message

    async def _sees(self, name: str) -> bool:
        """Tells whether this worker finds the chief's file.

        It need not look if this worker or the chief cannot start.
        """
        return not name or bool(self.refusal) or await _appears(self.shared_folder / name)

    async def _say_who(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _receive(reader, "who")
        await _send(writer, "i am", {"task_index": self.cluster.task_index})
        await reader.read()  # the caller closes, so that this port is not left in TIME_WAIT

    def _report(self) -> _Message:
        return {
            "task_index": self.cluster.task_index,
            "workers": list(self.cluster.workers),
            "facts": dict(self.facts),
            "refusal": self.refusal,
            "time": time.time(),
        }


class _Attendance:
    """Keeps what the chief knows of the other workers.

    Attributes:
        token: Name of the file in the shared folder that all workers should see.
        news: Set when something has changed.
    """

    def __init__(self, chief: Meeting) -> None:
        self._chief = chief
        self._cluster = chief.cluster
        self._misfits: list[str] = []
        self._reports: dict[int, _Message] = {}
        self._connections: set[asyncio.StreamWriter] = set()  # of workers only
        self.token = ""
        self.news = asyncio.Event()

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes a worker's report, and waits until that worker leaves."""
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
        """Returns the indices of workers that are not there."""
        return [i for i in range(1, self._cluster.num_workers) if i not in self._reports]

    def problems(self, *, include_missing: bool = True) -> list[str]:
        """Returns sentences about what prevents a run.

        Args:
            include_missing: Whether missing workers count as problems.
        """
        if self._chief.refusal:
            return [f"{self._cluster.name_of(0)}, the chief, cannot start. {self._chief.refusal}"]
        found = list(self._misfits)
        for index, report in sorted(self._reports.items()):
            found += self._differences(index, report)
        if include_missing:
            found += [
                f"{self._cluster.name_of(index)} did not come. Received: nothing from it within "
                f"{self._chief.timeout_secs:.0f} s Expected: the same command runs on every "
                "worker; see its log, and --startup_timeout_secs."
                for index in self.missing()
            ]
        return found

    def warnings(self) -> list[str]:
        """Returns sentences about differences that do not prevent a run."""
        return [
            f"The clock of {self._cluster.name_of(index)} differs from the chief's by "
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
        """Waits until all workers have closed their connections.

        If the chief closed first, its port would stay in TIME_WAIT.
        """
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
                f"Two processes are {self._cluster.name_of(index)}. Received: task index {index} "
                "twice Expected: every process has its own task index."
            )
        return ""

    def _differences(self, index: int, report: _Message) -> list[str]:
        if report["refusal"]:
            return [f"{self._cluster.name_of(index)} cannot start. {report['refusal']}"]
        theirs, ours = report["facts"], self._chief.facts
        found = [
            f"{self._cluster.name_of(index)} differs from the chief in {field}. "
            f"Received: {theirs.get(field)} Expected: {ours.get(field)}, as on worker 0"
            for field in sorted({*ours, *theirs})
            if theirs.get(field) != ours.get(field)
        ]
        if not report["is_seen"]:
            found.append(
                f"{self._cluster.name_of(index)} does not see the chief's run folder. Received: no "
                f"{self.token} in {self._chief.shared_folder} there Expected: a --run_dir on "
                "a file system that all workers share."
            )
        return found


def refuse(cluster: Cluster, reason: str) -> None:
    """Tells the other workers why this one does not start.

    It reaches those that come within 5 s. Without it they would wait until their timeout, and only
    learn that this worker did not come.
    """
    if not cluster.is_multi_worker:
        return
    unused, silence = Path(), lambda _: None
    part = Meeting(cluster, {}, unused, _REFUSAL_SECS, say=silence, refusal=reason)
    with contextlib.suppress(MeetingError):  # our own refusal, or no other worker came
        part.meet()


def check_port_is_free(cluster: Cluster) -> None:
    """Checks that this worker can listen on its port.

    Raises:
        MeetingError: Names the port, and the process that has it if this user may know it.
    """
    _open_port(cluster).close()


def _open_port(cluster: Cluster) -> socket.socket:
    """Opens this worker's port on every interface, as TensorFlow does."""
    _, port = split_address(cluster.address)
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise MeetingError(
            f"{cluster.name_of(cluster.task_index)} cannot listen on its port {port}. "
            f"Received: {error.strerror}{_holder_of(port)} Expected: a free port; end the process "
            "that has it, or give the cluster other ports."
        ) from error


def _holder_of(port: int) -> str:
    """Names the process on a port, if that is known."""
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
    """Answers on this worker's port.

    A connection that sends anything unexpected is closed.
    """

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
async def _token_file(part: Meeting) -> AsyncIterator[str]:
    """Puts a randomly named file into the shared folder.

    The file is removed at the end of the block. A chief that cannot start puts none.
    """
    if part.refusal:
        yield ""
        return
    name = f".preflight-{uuid.uuid4().hex}"
    path = part.shared_folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        yield name
    finally:
        path.unlink(missing_ok=True)


async def _appears(path: Path) -> bool:
    """Waits a while for a file to appear.

    Network file systems may be slow.
    """
    deadline = time.monotonic() + _ANSWER_SECS / 2
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_RETRY_SECS)
    return True


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = split_address(address)
    return await asyncio.open_connection(host, port, limit=_LARGEST_LINE)


async def _send(writer: asyncio.StreamWriter, kind: str, message: _Message) -> None:
    writer.write(json.dumps({"lbsgd": kind, **message}).encode() + b"\n")
    await writer.drain()


async def _receive(reader: asyncio.StreamReader, *kinds: str) -> _Message:
    """Returns the next message.

    Raises:
        ValueError: The message is of another kind or program, or there is none.
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


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
