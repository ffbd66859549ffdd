"""Sends and receives messages whose sender is proved.

Anyone can connect to a worker's port. So both ends of a connection prove that they can read a
secret file, which the chief puts into the run folder. The file has mode 0600. A message is one JSON
object a line:

    caller   -> answerer   {"lbsgd": KIND, "version": V, "nonce": N, ...}
    answerer -> caller     {"lbsgd": "hello", "version": V, "nonce": M, "secret": NAME}

From here on every line begins with its HMAC-SHA256, in hexadecimal. The key comes from the secret
and from both nonces. The HMAC covers the side and the number of the line too, so that no line can
be sent again. Only a line of the kind "unverified" may come without it. It is shown, but never
believed.

Everything is bounded: lines, time, and the number of callers that have proved nothing.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tf_lbsgd.workers import ports
from tf_lbsgd.workers.cluster import Cluster, split_address

VERSION = 3  # of the meeting; 1 had no number and no proof, 2 no attempt

_LARGEST_LINE = 2**17  # bytes; a list of 1,000 workers takes 2**15
_LONGEST_REMARK = 500  # characters
_UNPROVED_CALLERS = 64  # and one for each worker
_NAME = re.compile("[0-9a-f]{32}")
_KEY_BYTES = 32

Message = dict[str, Any]


class UnverifiedError(ValueError):
    """Someone who proved nothing said this."""


class UnsharedFolderError(ValueError):
    """The answerer's secret is not in the run folder."""


class Secret(NamedTuple):
    """A secret file in the run folder.

    Attributes:
        name: 32 hexadecimal digits, by which the file is found. Not secret.
        key: Content of the file, 32 random bytes.
    """

    name: str
    key: bytes


@contextlib.contextmanager
def offered_secret(folder: Path) -> Iterator[Secret]:
    """Makes a secret file for a block.

    The end of the block removes it. The folder is made if need be.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    secret = Secret(secrets.token_hex(16), secrets.token_bytes(_KEY_BYTES))
    path = _secret_file(folder, secret.name)
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret.key)
        os.replace(temporary, path)  # no one reads half of it
        yield secret
    finally:
        temporary.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def read_secret(folder: Path, name: str) -> Secret | None:
    """Reads a secret file.

    Returns:
        The secret. None if there is no such file, or it holds anything else.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(_secret_file(folder, name), os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            key = file.read(_KEY_BYTES + 1) if is_file else b""
        if len(key) == _KEY_BYTES:
            return Secret(name, key)
    return None


def printable(text: str) -> str:
    """Replaces what could control a terminal.

    Line breaks and tabs stay.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


class Channel:
    """One connection between two workers.

    Args:
        reader: Its incoming side, with a limit of `_LARGEST_LINE` bytes a line.
        writer: Its outgoing side.
        on_proof: Is called when the other side has proved that it knows the secret.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_proof: Callable[[], object] = lambda: None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_proof = on_proof
        self._key = b""
        self._side, self._other_side = "", ""
        self._sent = self._received = 0

    @classmethod
    async def connect(cls, address: str) -> "Channel":
        """Connects to "host:port"."""
        host, port = split_address(address)
        return cls(*await asyncio.open_connection(host, port, limit=_LARGEST_LINE))

    def close(self) -> None:
        """Closes the connection."""
        self._writer.close()

    async def greet(
        self, kind: str, find_secret: Callable[[str], Awaitable[Secret]], **fields: object
    ) -> Secret:
        """Sends the first line and awaits the other side's proof.

        Args:
            kind: Kind of the first line.
            find_secret: Finds the secret with the name that the other side gives.
            fields: More fields of the first line.

        Raises:
            UnverifiedError: The other side has another version or cannot prove itself.
            ValueError: It is another program, or `find_secret` raised it.
        """
        nonce = secrets.token_hex(16)
        await self.send(kind, {"version": VERSION, "nonce": nonce, **fields})
        answer = await self.receive("hello")
        check_version(answer, "this worker")
        secret = await find_secret(name_in(answer, "secret"))
        self._prove(secret, nonce, name_in(answer, "nonce"), "caller", "answerer")
        await self.receive("proof")
        return secret

    async def answer(self, first: Message, secret: Secret) -> None:
        """Answers a caller's first line and proves this side."""
        nonce = secrets.token_hex(16)
        await self.send("hello", {"version": VERSION, "nonce": nonce, "secret": secret.name})
        self._prove(secret, name_in(first, "nonce"), nonce, "answerer", "caller")
        await self.send("proof", {})

    async def send(self, kind: str, message: Message) -> None:
        """Sends a message, signed once there is a key.

        Raises:
            ValueError: It is too long.
        """
        text = json.dumps({"lbsgd": kind, **message}, ensure_ascii=False)
        body = text.encode(errors="replace")  # the name of a file need not be UTF-8
        if len(body) > _LARGEST_LINE - 100:
            raise ValueError(f"a {kind} of {len(body)} bytes, more than {_LARGEST_LINE - 100}")
        if self._key:
            body = self._signature(self._side, self._sent, body) + b" " + body
            self._sent += 1
        self._writer.write(body + b"\n")
        await self._writer.drain()

    async def remark(self, reason: str) -> None:
        """Sends a remark, which proves and decides nothing."""
        self._key = b""
        await self.send("unverified", {"reason": reason[:_LONGEST_REMARK]})

    async def receive(self, *kinds: str) -> Message:
        """Returns the next message.

        Raises:
            UnverifiedError: It lacks a proof. The text is what the sender says of itself.
            ValueError: It is of another kind or program, or there is none.
        """
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ValueError("the connection was closed")
        signature, body = b"", line[:-1]
        if self._key and not line.startswith(b"{"):
            signature, _, body = body.partition(b" ")
        message = _parsed(body)
        if message.get("lbsgd") == "unverified" and isinstance(message.get("reason"), str):
            raise UnverifiedError(_one_line(message["reason"]))
        if self._key:
            expected = self._signature(self._other_side, self._received, body)
            if not hmac.compare_digest(signature, expected):
                raise UnverifiedError("cannot prove that it is of this run")
            self._received += 1
            self._on_proof()
        if message.get("lbsgd") not in kinds:
            raise ValueError(f"{line[:40]!r}, which another program sends")
        return message

    def _prove(self, secret: Secret, called: str, answered: str, side: str, other: str) -> None:
        self._key = hmac.digest(secret.key, f"{called} {answered}".encode(), hashlib.sha256)
        self._side, self._other_side = side, other

    def _signature(self, side: str, number: int, body: bytes) -> bytes:
        signed = f"{side} {number} ".encode() + body
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest().encode()


@contextlib.asynccontextmanager
async def listening(
    cluster: Cluster, serve: Callable[[Channel], Awaitable[None]]
) -> AsyncIterator[None]:
    """Answers on this worker's port.

    A connection that sends anything unexpected is closed. If too many callers have proved nothing,
    the oldest of them is closed, since a worker takes only an instant.
    """
    unproved: dict[asyncio.StreamWriter, None] = {}  # the oldest first
    tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unproved[writer] = None
        if len(unproved) > _UNPROVED_CALLERS + cluster.num_workers:
            oldest = next(iter(unproved))
            del unproved[oldest]
            oldest.transport.abort()
        with contextlib.suppress(OSError, ValueError):
            await serve(Channel(reader, writer, lambda: unproved.pop(writer, None)))

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The end of the meeting cancels it, even before its first line. Of a coroutine function,
        # `start_server` would then report an error.
        task = asyncio.create_task(guarded(reader, writer))
        tasks[task] = writer
        task.add_done_callback(end)

    def end(task: asyncio.Task[None]) -> None:
        writer = tasks.pop(task)
        unproved.pop(writer, None)
        writer.close()

    async with contextlib.AsyncExitStack() as stack:
        for sock in ports.open_port(cluster):
            server = await asyncio.start_server(accept, sock=sock, limit=_LARGEST_LINE)
            stack.callback(server.close)
        yield


def check_version(first: Message, speaker: str) -> None:
    """Checks the version in the other side's first line.

    Args:
        first: The line.
        speaker: Who speaks our version, as "the chief".

    Raises:
        UnverifiedError: It has another version, or none.
    """
    version = first.get("version")
    if version != VERSION:
        named = version if type(version) is int and 0 <= version < 10**6 else "1 or none"
        raise UnverifiedError(
            f"speaks version {named} of the meeting, {speaker} {VERSION}: install the same "
            "tf_lbsgd on both"
        )


def name_in(message: Message, field: str) -> str:
    """Returns a field that holds 32 hexadecimal digits.

    Raises:
        ValueError: It holds anything else.
    """
    value = message.get(field)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"no {field} of 32 hexadecimal digits")
    return value


def _parsed(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ValueError(f"{body[:40]!r}, which another program sends")
    return message


def _one_line(text: str) -> str:
    return printable(" ".join(text[:_LONGEST_REMARK].splitlines()))


def _secret_file(folder: Path, name: str) -> Path:
    return folder / f".meeting-{name}"
