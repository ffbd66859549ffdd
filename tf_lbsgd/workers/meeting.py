"""Checks that all workers agree, before TensorFlow starts.

This is a rendezvous and a preflight check. TensorFlow waits for an hour, without a message, for a
worker that never comes. Workers that differ in a flag or in a version do train, but to a model
that no one asked for. So the workers first talk to each other over the addresses that TensorFlow
will use, with plain sockets. `channel.py` describes how each side proves that it belongs to the
run. Then these messages follow:

    worker -> chief    {"lbsgd": "hello", "task_index": I, ...}    see `channel.py`
    worker -> chief    {"lbsgd": "report", "workers": [...], "facts": {...}, ...}
    chief  -> worker   {"lbsgd": "waiting", "for": NAMES}          every 10 s, and at the end
    worker -> chief    {"lbsgd": "here"}                           the answer to it
    chief  => worker   {"lbsgd": "who", ...}                       sent to the worker's address
    worker => chief    {"lbsgd": "i am", "task_index": I, ...}     the address leads to the worker
    chief  -> worker   {"lbsgd": "verdict", "problems": [...], "warnings": [...], ...}

All workers get the same verdict. A worker that cannot start also comes, to say why. It puts a
"refusal" into its report. A chief that cannot start makes its refusal the verdict. A side from
which nothing comes for 30 s is dropped, and may come again.

Who proves nothing decides nothing. What such a caller says of itself is shown as unverified.
"""

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from tf_lbsgd.workers import ports
from tf_lbsgd.workers.channel import (
    Channel,
    Message,
    Secret,
    UnsharedFolderError,
    UnverifiedError,
    check_version,
    listening,
    name_in,
    offered_secret,
    printable,
    read_secret,
)
from tf_lbsgd.workers.cluster import Cluster
from tf_lbsgd.workers.exits import StartupError
from tf_lbsgd.workers.messages import LONGEST_TEXT, Report, Verdict, index_in, typed

_ANSWER_SECS = 10.0  # a worker that is there answers at once
_RETRY_SECS = 0.2
_SECRET_SECS = 2.0  # for each try, until the timeout
_REMIND_SECS = 10.0
_SILENT_SECS = 30.0  # three reminders
_REFUSAL_SECS = 5.0  # workers of one command start within seconds
_RIVAL_SECS = 2.0
_LARGEST_CLOCK_SKEW_SECS = 5.0


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
        is_final: Whether a restart would find the same refusal.
        attempt: Number of the attempt, on the chief. 0 if the workers write no run folder.
        nonce: Random name of the attempt, on the chief.
        process: Random name of this process, 32 hexadecimal digits.
    """

    cluster: Cluster
    facts: Mapping[str, str]
    shared_folder: Path
    timeout_secs: float
    say: Callable[[str], None] = print
    refusal: str = ""
    is_final: bool = True
    attempt: int = 0
    nonce: str = ""
    process: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))

    def meet(self) -> Verdict:
        """Waits until all workers are there and agree.

        The port of this worker is free again afterwards.

        Returns:
            The verdict, without problems. It has warnings about differences that do not prevent a
            run, and the chief's attempt.

        Raises:
            MeetingError: Says which worker differs in what.
            StartupError: Says which worker did not come or cannot be reached, or that the port of
                this one is still held. That may be better at the next try.
        """
        part = _Chief(self).lead() if self.cluster.is_chief else _Follower(self).follow()
        verdict = asyncio.run(self._unless_rival(part))
        if verdict.problems:
            kind = MeetingError if verdict.is_final else StartupError
            raise kind(printable("\n".join(verdict.problems)))
        warnings = [printable(warning) for warning in verdict.warnings]
        return dataclasses.replace(verdict, warnings=warnings)

    async def answer_who(self, channel: Channel, first: Message, secret: Secret) -> None:
        """Tells a caller with the secret which worker this is."""
        async with asyncio.timeout(_ANSWER_SECS):
            await channel.answer(first, secret)
            me = {"task_index": self.cluster.task_index, "process": self.process}
            await channel.send("i am", me)
            await channel.receive()  # the caller closes, or this port were left in TIME_WAIT

    async def ask_who(self, address: str) -> tuple[int, str]:
        """Returns index and process of the worker at an address.

        Raises:
            OSError: No one answers there.
            ValueError: Another program answers, or one that proves nothing.
        """
        async with asyncio.timeout(_ANSWER_SECS):
            channel = await Channel.connect(address)
            with contextlib.closing(channel):
                await channel.greet("who", self.find_secret)
                answer = await channel.receive("i am")
        return index_in(answer, self.cluster.num_workers), name_in(answer, "process")

    async def find_secret(self, name: str) -> Secret:
        """Waits a while for a secret file.

        Network file systems may be slow.

        Raises:
            UnsharedFolderError: It does not appear.
        """
        deadline = time.monotonic() + _SECRET_SECS
        while (secret := read_secret(self.shared_folder, name)) is None:
            if time.monotonic() > deadline:
                raise UnsharedFolderError(f"no .meeting-{name} in {self.shared_folder}")
            await asyncio.sleep(_RETRY_SECS)
        return secret

    async def _unless_rival(self, part: Coroutine[Any, Any, "Verdict"]) -> "Verdict":
        """Takes part, unless another worker has this worker's address."""
        if ports.own_addresses(self.cluster):
            return await part
        self.say(
            f"Warning: {self.cluster.address}, the address of this worker, is not an address of "
            "this host. That is well behind NAT. Otherwise the list of workers or the task index "
            "is wrong."
        )
        tasks = [asyncio.create_task(part), asyncio.create_task(self._find_rival())]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return done.pop().result()

    async def _find_rival(self) -> "Verdict":
        """Returns when another process answers at this worker's address."""
        me, address = self.cluster.task_index, self.cluster.workers[self.cluster.task_index]
        while True:
            with contextlib.suppress(OSError, ValueError):
                index, process = await self.ask_who(address)
                if process != self.process:
                    return Verdict(
                        [
                            f"Another process answers at {address}, the address of worker {me}. "
                            f"Received: worker {index} there, while this host has no such address "
                            "Expected: every process has its own task index, and every worker "
                            "runs on the host that the list of workers gives for it."
                        ]
                    )
            await asyncio.sleep(_RIVAL_SECS)


class _Follower:
    """Plays the part of any worker but the chief."""

    def __init__(self, part: Meeting) -> None:
        self._part = part
        self._cluster = part.cluster
        self._secret: Secret | None = None
        self._unshared = ""  # why the chief's secret was not found
        self._remark = ""  # of a chief that proved nothing

    async def follow(self) -> Verdict:
        """Meets the chief, again and again until the timeout."""
        deadline = time.monotonic() + self._part.timeout_secs
        reason: Exception = TimeoutError("nothing")
        async with listening(self._cluster, self._receive):
            while time.monotonic() < deadline:
                try:
                    return await self._attend()
                except (OSError, ValueError) as error:
                    reason = error
                await asyncio.sleep(_RETRY_SECS)
        return self._without_chief(reason)

    def _without_chief(self, reason: Exception) -> Verdict:
        chief, me = (self._cluster.name_of(i) for i in (0, self._cluster.task_index))
        if self._unshared and self._secret is None:
            problem = (
                f"{me} does not see the chief's run folder. Received: {self._unshared} there "
                "Expected: a --run_dir on a file system that all workers share."
            )
            return Verdict([problem])
        problem = (
            f"{chief}, the chief, does not answer {me}. "
            f"Received: {self._remark or _reason(reason)} for {self._part.timeout_secs:.0f} s. "
            "Expected: the same command and the same tf_lbsgd run on every worker, and its address "
            "is right; --startup_timeout_secs says how long to wait."
        )
        return Verdict([problem], is_final=False)

    async def _attend(self) -> Verdict:
        """Reports to the chief and waits for its verdict."""
        async with asyncio.timeout(_ANSWER_SECS):
            channel = await Channel.connect(self._cluster.workers[0])
        with contextlib.closing(channel):
            async with asyncio.timeout(_ANSWER_SECS):
                await self._greet(channel)
                await channel.send("report", self._report())
            while True:
                async with asyncio.timeout(_SILENT_SECS):
                    message = await channel.receive("waiting", "verdict")
                if message["lbsgd"] == "verdict":
                    return Verdict.from_message(message)
                if names := typed(message, "for", str):
                    self._part.say(f"Waiting for {printable(names)}")
                await channel.send("here", {})

    async def _greet(self, channel: Channel) -> None:
        index = self._cluster.task_index
        try:
            self._secret = await channel.greet("hello", self._part.find_secret, task_index=index)
        except UnsharedFolderError as error:
            folder = f"does not see the chief's run folder: {error}"
            await channel.remark(self._part.refusal or folder)
            if not self._unshared:
                self._part.say(f"The chief answers, but this worker {folder}. Is it shared?")
            self._unshared = str(error)
            raise
        except UnverifiedError as error:
            remark = f"(unverified, says it is {self._cluster.name_of(0)}: {error})"
            if remark != self._remark:
                self._part.say(remark)
            self._remark = remark
            raise
        self._remark = ""

    async def _receive(self, channel: Channel) -> None:
        async with asyncio.timeout(_ANSWER_SECS):
            first = await channel.receive("who")
        if self._secret is not None:
            await self._part.answer_who(channel, first, self._secret)

    def _report(self) -> Message:
        return {
            "process": self._part.process,
            "workers": list(self._cluster.workers),
            "facts": dict(self._part.facts),
            "refusal": self._part.refusal[:LONGEST_TEXT],
            "time": time.time(),
        }


class _Chief:
    """Plays the part of the chief.

    It keeps what it knows of the other workers.
    """

    def __init__(self, part: Meeting) -> None:
        self._part = part
        self._cluster = part.cluster
        self._secret: Secret | None = None
        self._misfits: list[str] = []
        self._reports: dict[int, Report] = {}
        self._doubted: set[int] = set()  # workers of whom a second process has come
        self._remarks: dict[int, str] = {}  # of callers that proved nothing
        self._channels: set[Channel] = set()  # of workers only
        self._news = asyncio.Event()

    async def lead(self) -> Verdict:
        """Waits for all workers and tells them the verdict."""
        with contextlib.ExitStack() as stack:
            try:
                self._secret = stack.enter_context(offered_secret(self._part.shared_folder))
            except OSError:
                if not self._part.refusal:
                    raise
            async with listening(self._cluster, self._receive):
                await self._wait()
                verdict = self._verdict()
                if not verdict.problems:
                    verdict = await self._unreachable() or verdict
                verdict = verdict.shortened()
            # The port is closed now: a worker that has the verdict may start TensorFlow.
            await self._send_to_all("verdict", dataclasses.asdict(verdict))
            await self._until_all_have_left()
        return verdict

    async def _wait(self) -> None:
        deadline = time.monotonic() + self._part.timeout_secs
        reminder = time.monotonic() + _REMIND_SECS
        while time.monotonic() < deadline:
            if not self._missing() and await self._all_answer():
                return
            if self._part.refusal or self._disagreements():
                deadline = min(deadline, time.monotonic() + _ANSWER_SECS)
            if time.monotonic() > reminder:
                reminder += _REMIND_SECS
                names = ", ".join(self._cluster.name_of(index) for index in self._missing())
                self._part.say(
                    f"Waiting for {names}, up to {deadline - time.monotonic():.0f} s more"
                )
                await self._send_to_all("waiting", {"for": names})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _RETRY_SECS)
            self._news.clear()

    async def _all_answer(self) -> bool:
        """Asks all workers for a sign, and drops silent ones."""
        reports = list(self._reports.values())
        answers = await asyncio.gather(*(_is_here(report) for report in reports))
        for report, is_here in zip(reports, answers, strict=True):
            if not is_here:
                self._drop(report)
        return all(answers) and not self._missing()

    def _drop(self, report: Report) -> None:
        report.channel.close()
        self._channels.discard(report.channel)
        if self._reports.get(report.task_index) is report:  # it may come again
            del self._reports[report.task_index]

    def _missing(self) -> list[int]:
        """Returns the indices of workers that are missing or doubted."""
        there = self._reports.keys() - self._doubted
        return [i for i in range(1, self._cluster.num_workers) if i not in there]

    def _verdict(self) -> Verdict:
        if self._part.refusal:
            chief = self._cluster.name_of(0)
            problem = f"{chief}, the chief, cannot start. {self._part.refusal}"
            return Verdict([problem], is_final=self._part.is_final)
        disagreements = self._disagreements()
        absences = [self._absence(index) for index in self._missing()]
        return Verdict(
            [*disagreements, *absences],
            self._warnings(),
            is_final=bool(disagreements),
            attempt=self._part.attempt,
            nonce=self._part.nonce,
        )

    def _disagreements(self) -> list[str]:
        found = list(self._misfits)
        for _, report in sorted(self._reports.items()):
            found += self._differences(report)
        return found

    def _absence(self, index: int) -> str:
        return (
            f"{self._cluster.name_of(index)} did not come. Received: "
            f"{self._remarks.get(index, 'nothing from it')} within {self._part.timeout_secs:.0f} s "
            "Expected: the same command runs on every worker; see its log, and "
            "--startup_timeout_secs."
        )

    def _warnings(self) -> list[str]:
        return [
            f"The clock of {self._cluster.name_of(index)} differs from the chief's by "
            f"{-report.skew_secs:.0f} s: times in logs cannot be compared."
            for index, report in sorted(self._reports.items())
            if abs(report.skew_secs) > _LARGEST_CLOCK_SKEW_SECS
        ]

    def _differences(self, report: Report) -> list[str]:
        name = self._cluster.name_of(report.task_index)
        if report.refusal:
            return [f"{name} cannot start. {report.refusal}"]
        theirs, ours = report.facts, self._part.facts
        return [
            f"{name} differs from the chief in {field}. "
            f"Received: {theirs.get(field)} Expected: {ours.get(field)}, as on worker 0"
            for field in sorted({*ours, *theirs})
            if theirs.get(field) != ours.get(field)
        ]

    async def _unreachable(self) -> Verdict | None:
        """Calls every worker at its address, as TensorFlow will.

        It returns None if all of them answer.
        """
        indices = range(1, self._cluster.num_workers)
        verdicts = await asyncio.gather(*(self._call(index) for index in indices))
        found = [verdict for verdict in verdicts if verdict is not None]
        if not found:
            return None
        problems = [problem for verdict in found for problem in verdict.problems]
        return Verdict(problems, is_final=any(verdict.is_final for verdict in found))

    async def _call(self, task_index: int) -> Verdict | None:
        """Checks the address of a worker.

        It returns None if nothing is wrong.
        """
        name = self._cluster.name_of(task_index)
        try:
            index, process = await self._part.ask_who(self._cluster.workers[task_index])
        except (OSError, ValueError) as error:
            problem = (
                f"The chief cannot reach {name}. Received: {_reason(error)} "
                "Expected: every worker can connect to every other one, on the ports of the "
                "cluster; look at firewalls and at what the name resolves to."
            )
            return Verdict([problem], is_final=False)
        report = self._reports.get(task_index)
        if index == task_index and (report is None or process == report.process):
            return None
        which = "another worker" if index != task_index else "another process"
        problem = f"At the address of {name} {which} answers. Received: {index} Expected: "
        return Verdict([f"{problem}{task_index}"], is_final=index != task_index)

    async def _receive(self, channel: Channel) -> None:
        """Takes a worker's report, and waits until that worker leaves."""
        async with asyncio.timeout(_ANSWER_SECS):
            first = await channel.receive("hello", "who", "report")
        if first["lbsgd"] == "who":
            if self._secret is not None:
                await self._part.answer_who(channel, first, self._secret)
            return
        index = index_in(first, self._cluster.num_workers)
        try:
            report = await self._identify(channel, first, index)
        except UnverifiedError as remark:
            self._note(index, str(remark))
            return
        await self._admit(report)
        await self._listen_to(report)

    async def _identify(self, channel: Channel, first: Message, index: int) -> Report:
        try:
            check_version(first, "the chief")
        except UnverifiedError as error:
            await channel.remark(f"{self._cluster.name_of(index)} {error}")
            raise
        if self._secret is None:
            await channel.remark(f"cannot start. {self._part.refusal}")
            raise ValueError("no secret")
        async with asyncio.timeout(_ANSWER_SECS):
            await channel.answer(first, self._secret)
            return Report.from_message(await channel.receive("report"), index, channel)

    def _note(self, index: int, remark: str) -> None:
        """Keeps an unverified remark, and shows a worker's first one."""
        shown = f"(unverified, says it is {self._cluster.name_of(index)}: {remark})"
        if index not in self._remarks:
            self._part.say(shown)
        self._remarks[index] = shown

    async def _admit(self, report: Report) -> None:
        self._channels.add(report.channel)
        if misfit := await self._misfit(report):
            self._misfits.append(misfit)
        else:
            if before := self._reports.get(report.task_index):
                self._drop(before)
            self._reports[report.task_index] = report
        self._news.set()

    async def _misfit(self, report: Report) -> str:
        index, workers = report.task_index, report.workers
        if workers != list(self._cluster.workers):
            return (
                f"Worker {index} has another list of workers than the chief. "
                f"Received: {workers} Expected: {list(self._cluster.workers)}"
            )
        if index == 0 or await self._is_second_process(report):
            return (
                f"Two processes are {self._cluster.name_of(index)}. Received: task index {index} "
                "twice Expected: every process has its own task index."
            )
        return ""

    async def _is_second_process(self, report: Report) -> bool:
        """Tells whether another process is this worker too."""
        before = self._reports.get(report.task_index)
        if before is None or before.process == report.process:
            return False
        self._doubted.add(report.task_index)
        is_here = await _is_here(before)
        self._doubted.discard(report.task_index)
        return is_here

    async def _listen_to(self, report: Report) -> None:
        """Returns when a worker has left or fell silent."""
        try:
            while True:
                async with asyncio.timeout(_SILENT_SECS):
                    await report.channel.receive("here")
                report.heard.set()
        finally:
            self._drop(report)

    async def _send_to_all(self, kind: str, message: Message) -> None:
        """Sends a message to all workers that are there."""
        for channel in list(self._channels):
            # One whose machine is gone may take nothing any more.
            with contextlib.suppress(OSError):
                async with asyncio.timeout(_ANSWER_SECS):
                    await channel.send(kind, message)

    async def _until_all_have_left(self) -> None:
        """Waits until all workers have closed their connections.

        If the chief closed first, its port would stay in TIME_WAIT.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_SECS):
                while self._channels:
                    await asyncio.sleep(0.01)


def refuse(cluster: Cluster, reason: str, shared_folder: Path, *, is_final: bool = True) -> None:
    """Tells the other workers why this one does not start.

    It reaches those that come within 5 s. Without it they would wait until their timeout, and only
    learn that this worker did not come.

    Args:
        cluster: The workers, and which of them this process is.
        reason: Why it does not start.
        shared_folder: The run folder. If it cannot be read, the others show the reason, but do not
            believe it.
        is_final: Whether a restart would find the same reason. Only the chief can say so.
    """
    if not cluster.is_multi_worker:
        return
    existed, silence = shared_folder.exists(), lambda _: None
    part = Meeting(
        cluster, {}, shared_folder, _REFUSAL_SECS, say=silence, refusal=reason, is_final=is_final
    )
    with contextlib.suppress(MeetingError, StartupError):  # our refusal, or no other worker came
        part.meet()
    if not existed and cluster.is_chief:
        with contextlib.suppress(OSError):  # others may have written into it
            shared_folder.rmdir()


async def _is_here(report: Report) -> bool:
    """Asks a worker for a sign.

    Its machine may have gone without a word.
    """
    report.heard.clear()
    with contextlib.suppress(OSError):
        await report.channel.send("waiting", {"for": ""})
        async with asyncio.timeout(_ANSWER_SECS):
            await report.heard.wait()
    return report.heard.is_set()


def _reason(error: Exception) -> str:
    return printable(str(error)) or type(error).__name__
