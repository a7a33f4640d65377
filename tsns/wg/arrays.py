"""numpy, without the threads that it starts otherwise (ring 0).

Its linear algebra, which nothing here uses, makes a thread for each processor when it is loaded. What loads numpy loads it from here.
"""

from __future__ import annotations

import os
from typing import Final

_THREADS: Final = "OPENBLAS_NUM_THREADS"
_is_ours: Final = _THREADS not in os.environ
if _is_ours:
    os.environ[_THREADS] = "1"
import numpy as np  # noqa: E402 (reads it now)

if _is_ours:
    del os.environ[_THREADS]  # programs that we start are free to do as they like

__all__ = ["np"]
