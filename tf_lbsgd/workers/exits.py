"""Exit statuses of a worker, and the words its last line begins with.

What starts workers reads both: a launcher decides whether to restart, and quotes the message.
"""

DONE = 0
FAILED = 1  # a restart may help
MISCONFIGURED = 2  # bad input, found before the first step: a restart does not help
PREEMPTED = 75  # EX_TEMPFAIL: the same command continues the run

REFUSED_PREFIX = "Error: "  # of the message that goes with MISCONFIGURED
FAILED_PREFIX = "Failed: "  # of the line that follows the traceback of a failure
