"""Makes the CUDA build of torch small enough for a cluster that has no GPU: 2 GB of image instead of 6.

Registries carry one Linux build of torch, and it does not load without cuBLAS, cuDNN, NCCL and the other libraries that it
links, 4 GB that a machine without a GPU never calls. Each of them is replaced by a library of the same name and the same
symbols whose functions return 1, which all of these interfaces read as an error. torch itself stays as it is; it finds no driver and works
on the processor, as it does everywhere else without a GPU. Only for tests: an image made like this never uses a GPU.

    python3 without_cuda.py SITE_PACKAGES [--toolchain FOLDER]

Needs gcc and binutils; with --toolchain those under another root folder, so that an image can be changed by a compiler that
it does not hold (see Dockerfile).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

REMOVED_PACKAGES = ("triton", "nvidia/cu13/include", "nvidia/cu13/bin", "nvidia/cu13/nvvm")
"""Triton compiles for GPUs only; the others serve compilers. Relative to site-packages."""

KEPT = re.compile(r"lib(cudart|cupti|cufile)\.so")
"""Small libraries (10 MB together) that torch calls even where there is no GPU."""


def main() -> None:
    """Replaces, in place, the CUDA libraries under the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Replace the CUDA libraries that torch is linked to by stand-ins.")
    parser.add_argument("site_packages", type=Path, help="folder that holds torch/ and nvidia/")
    parser.add_argument("--toolchain", type=Path, default=Path("/"), metavar="FOLDER", help="root folder of gcc and binutils (default: /)")
    options = parser.parse_args()
    replace(options.site_packages, Toolchain(options.toolchain))


def replace(site_packages: Path, tools: Toolchain) -> None:
    """Puts a stand-in in the place of each CUDA library that torch is linked to, and removes the others."""
    for name in REMOVED_PACKAGES:
        shutil.rmtree(site_packages / name, ignore_errors=True)
    own = sorted((site_packages / "torch").rglob("*.so"))
    wanted = {name for library in own for name, _ in tools.symbols(library, "--undefined-only")}
    linked = set(re.findall(r"NEEDED\s+(\S+)", tools.run("objdump", "-p", *own)))
    for library in sorted((site_packages / "nvidia").rglob("lib/*")):
        if not library.is_file() or KEPT.match(library.name):
            continue
        symbols = tools.symbols(library, "--defined-only") if library.name in linked else []
        library.unlink()
        if library.name in linked:
            stand_in(library, [(name, version) for name, version in symbols if name in wanted], tools)


def stand_in(library: Path, symbols: list[tuple[str, str]], tools: Toolchain) -> None:
    """Writes a shared library to `library` that has these symbols (pairs of name and version) and does nothing."""
    by_version: dict[str, list[str]] = defaultdict(list)
    for name, version in symbols:
        by_version[version].append(name)
    unversioned = by_version.pop("", [])
    with tempfile.TemporaryDirectory() as folder:
        code, versions = Path(folder, "code.c"), Path(folder, "versions.map")
        code.write_text("".join(f"long {name}(void) {{ return 1; }}\n" for name in {name for name, _ in symbols}))
        versions.write_text("".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in by_version.items()))
        script = [f"-Wl,--version-script={versions}"] if by_version else []
        tools.run("gcc", "-shared", "-fPIC", "-nostdlib", "-w", f"-Wl,-soname,{library.name}", *script, "-o", library, code)
    library.chmod(0o644)
    print(f"{library.name}: a stand-in with {len(symbols)} functions, {len(unversioned)} of them without a version")


class Toolchain:
    """gcc and binutils of another root folder, run in this one."""

    def __init__(self, root: Path) -> None:
        self._environment = dict(os.environ)
        if root != Path("/"):
            libraries = [root / folder for folder in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")]
            self._environment |= {"PATH": str(root / "usr/bin"), "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}

    def run(self, *command: str | Path) -> str:
        """Runs a program and returns what it printed.

        Raises:
            subprocess.CalledProcessError: it failed; its own message is on stderr.
        """
        program = shutil.which(command[0], path=self._environment["PATH"]) or command[0]
        return subprocess.run([program, *command[1:]], check=True, stdout=subprocess.PIPE, text=True, env=self._environment).stdout

    def symbols(self, library: Path, which: str) -> list[tuple[str, str]]:
        """Pairs of name and version ("" where it has none) that `nm` lists for `library`."""
        names = (line.split()[0].partition("@") for line in self.run("nm", "-D", "-P", which, library).splitlines())
        return [(name, version.lstrip("@")) for name, _, version in names]


if __name__ == "__main__":
    main()
