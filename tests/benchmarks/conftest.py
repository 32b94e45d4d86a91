"""The harness lies beside the package, not in it: put the repository's root where imports are looked for."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
