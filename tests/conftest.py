"""Makes the helper modules beside the tests importable."""

import sys
from pathlib import Path

_ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(_ROOT / "tests" / "multi_worker"), str(_ROOT / "tools")]
