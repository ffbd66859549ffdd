"""Makes the helper modules beside the tests importable, and Ctrl-C mean the same everywhere."""

import signal
import sys
from pathlib import Path

import hypothesis

_ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(_ROOT / "tests" / "multi_worker"), str(_ROOT / "tools")]

# A shell has what it starts in the background ignore SIGINT, and all that is started from there.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests share the cores: how long an example takes says nothing.
hypothesis.settings.register_profile("shared_machine", deadline=None)
hypothesis.settings.load_profile("shared_machine")
