"""Sets up every test session.

The helper modules beside the tests become importable. Ctrl-C ends the tests in the background too.
Property tests have no deadline.
"""

import signal
import sys
from pathlib import Path

import hypothesis

_ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(_ROOT / "tests" / "multi_worker"), str(_ROOT / "tools")]

# A process that a shell starts in the background ignores SIGINT, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup, and then by children too

# Tests share the cores, so the time that one example takes means nothing.
hypothesis.settings.register_profile("shared_machine", deadline=None)
hypothesis.settings.load_profile("shared_machine")
