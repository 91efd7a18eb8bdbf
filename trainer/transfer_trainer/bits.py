"""bitsandbytes, for those who keep numbers in 4 or 8 bits. Only a forked worker imports it: see lora.py.

On processors with AVX512-BF16 it warns of a kernel that it could fetch for inference; none of what is used here would call it.
"""

from __future__ import annotations

import logging

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

import bitsandbytes  # noqa: E402  the level comes first
from bitsandbytes import functional  # noqa: E402

__all__ = ["bitsandbytes", "functional"]
