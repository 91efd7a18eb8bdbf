"""What torch.compile needs besides torch: a compiler, and the headers of Python that its kernels are built with."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

from transfer_api.errors import SpecError
from transfer_api.spec import Compilation


def check_toolchain(section: str, *, gpu: bool) -> None:
    """Refuses `compile: Layers` where nothing can be compiled.

    Not a plain run instead: that would give the same losses, and a figure of speed that somebody takes for the compiled one's. It is
    found before anything was learned, and all pods of one image have the same.

    Args:
        section: of the experiment file.
        gpu: whether kernels of a GPU are built (Triton takes a C compiler), or loops of a CPU (Inductor takes one of C++).

    Raises:
        SpecError: a compiler or the headers are missing.
    """
    variable, names = ("CC", ("gcc", "clang")) if gpu else ("CXX", ("g++",))
    named = os.environ.get(variable)
    if not any(map(shutil.which, [named] if named else names)):
        language = "C" if gpu else "C++"
        raise _refusal(section, f"needs a {language} compiler, and there is none ({variable}={named or ''}, {', '.join(names)})")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise _refusal(section, "needs the headers of Python, and there are none")


def _refusal(section: str, problem: str) -> SpecError:
    return SpecError(
        problem, field=f"{section}.compile", value=Compilation.LAYERS.value,
        next_step="Install them (Debian: apt-get install g++ python3-dev), use an image that has them, or remove compile",
    )  # fmt: skip
