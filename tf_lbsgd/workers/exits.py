"""Defines exit statuses and errors of a worker.

Whatever starts the workers reads the exit status and the last lines of the log. A launcher decides
by them whether to restart, and quotes the error.
"""

DONE = 0
FAILED = 1  # a restart may help
MISCONFIGURED = 2  # bad input, found before the first step: a restart does not help
PREEMPTED = 75  # EX_TEMPFAIL: the same command continues the run
INTERRUPTED = 130  # Ctrl-C, as shells report it: the same command continues the run

REFUSED_PREFIX = "Error: "  # begins the message of an exit with MISCONFIGURED
FAILED_PREFIX = "Failed: "  # begins the line after the traceback of a failure


class StartupError(RuntimeError):
    """The workers could not start together this time.

    A worker is late or cannot be reached, or a port is still held. A restart may help.
    """


class WorkerLostError(RuntimeError):
    """Another worker failed or stopped answering. The message names it."""


class LeaseLostError(RuntimeError):
    """Another attempt has taken over the run folder.

    The message names it. Nothing that this one did since then counts.
    """


class RunStoppedError(RuntimeError):
    """All workers end the run after the same step.

    They decided on the same values, which the step's all-reduce had given them.
    """


class NonFiniteError(RunStoppedError):
    """A loss or gradient was not finite.

    The newest checkpoint is from an earlier step.
    """


class PreemptedError(SystemExit):
    """A worker was preempted or interrupted.

    All workers end the run after the same step. A program that does not catch it ends with its
    status.

    Attributes:
        status: Exit status of this process, `PREEMPTED` or `INTERRUPTED`.
    """

    def __init__(self, message: str, status: int = PREEMPTED) -> None:
        super().__init__(message)
        self.code = self.status = status
