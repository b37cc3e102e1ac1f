"""Writes a device image: a folder with all that a device needs beside its system's Python.

`OUT/{site/, run, device/}`: the packages, a script that runs Python with them, and the device bundle. The packages are
wheels for the device's machine, without what only the compiler needs.
"""

from __future__ import annotations

import compileall
import importlib.metadata
import os
import platform
import py_compile
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from zmq_offload.artifacts.manifest import LIBRARY, MANIFEST, Manifest
from zmq_offload.common.scratch import PREFIX, folders_made, put_in_place, scratch_folder
from zmq_offload.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from zmq_offload.export.kept import COMMANDS, ROOMS, UNUSED, download, place_of, requirements

MACHINES = ("aarch64", "x86_64")
PACKAGES, BUNDLE, RUN = "site", "device", "run"

_RUN = """\
#!/bin/sh
# Runs Python with the packages of this image: run app.py
PYTHONPATH="$(dirname "$(readlink -f "$0")")/{packages}${{PYTHONPATH:+:$PYTHONPATH}}"
# A device computes with TVM. NumPy's library for matrix products would take memory for each core.
export PYTHONPATH OPENBLAS_NUM_THREADS="${{OPENBLAS_NUM_THREADS:-1}}"
exec python{python} "$@"
"""


class Image(NamedTuple):
    """A device image that was written.

    Parameters
    ----------
    folder : pathlib.Path
        Its folder.
    sizes : dict of str to int
        The bytes of each package, of the bytecode of all, and of the device bundle.
    compiled : bool
        Whether the packages are compiled to bytecode. If not, the device does that at each start, or once, by
        ``run -m compileall``.
    """

    folder: Path
    sizes: dict[str, int]
    compiled: bool


def write_image(
    output: str | os.PathLike[str],
    *,
    machine: str = "aarch64",
    python: str = "3.11",
    bundle: str | os.PathLike[str] | None = None,
    wheels: str | os.PathLike[str] | None = None,
    more: Sequence[str] = (),
    without: Sequence[str] = (),
    force: bool = False,
) -> Image:
    """Write a device image.

    Parameters
    ----------
    output : path
        Its folder.
    machine : str, optional
        The device's machine, as ``uname -m`` has it: aarch64 or x86_64.
    python : str, optional
        The version of the device's Python, such as "3.11".
    bundle : path, optional
        A device bundle to put in, as ``device``.
    wheels : path, optional
        A folder with the wheels to use instead of PyPI's.
    more : sequence of str, optional
        Requirements to install beside the device's own, such as "opencv-python-headless" or "numpy<2".
    without : sequence of str, optional
        Packages to leave out, because the device's system has them.
    force : bool, optional
        Replace an image that exists. Nothing else is replaced.

    Returns
    -------
    Image

    Raises
    ------
    InvalidArgument
        If `machine` or `python` is not known, the bundle is for another machine, or `without` names a package that is
        not needed.
    AlreadyExists
        If `output` exists, without `force`, or is not an image.
    FailedPrecondition
        If there is no wheel for a requirement, the bundle is damaged or of another version of TVM, or `output` cannot
        be written.
    """
    if machine not in MACHINES:
        raise InvalidArgument(f"machine {machine!r} is not one of {', '.join(MACHINES)}")
    if not re.fullmatch(r"3\.[1-9][0-9]", python):
        raise InvalidArgument(f"Python {python!r} is not a version such as 3.11")
    place = Path(output)
    if os.path.lexists(place):
        _check_replaced(place, force)
    manifest = None if bundle is None else _checked(Path(bundle), machine)
    try:
        with folders_made(place.parent), scratch_folder(place.parent, PREFIX) as scratch:
            draft, found = scratch / "new", scratch / "wheels"
            site = draft / PACKAGES
            site.mkdir(parents=True)
            _fetch(
                download([*_declared(python), *more], found, machine, python, None if wheels is None else Path(wheels))
            )
            packages = sorted(found.glob("*.whl"))
            _check_packages(packages, without, manifest, bundle)
            left_out = {_normal(name) for name in (*UNUSED, *without)}
            sizes = {}
            for wheel in packages:
                name = wheel.name.split("-")[0]
                if _normal(name) not in left_out:
                    sizes[name] = _unpack(wheel, site)
            sizes["zmq_offload"] = _own(site, native=machine == platform.machine() and _runs(python))
            if bundle is not None and manifest is not None:
                _copy_bundle(Path(bundle), manifest, draft / BUNDLE)
                sizes[BUNDLE] = _bytes(draft / BUNDLE)
            (draft / RUN).write_text(_RUN.format(packages=PACKAGES, python=python))
            (draft / RUN).chmod(0o755)
            if _runs(python):
                mode = py_compile.PycInvalidationMode.CHECKED_HASH  # a copy may have other times
                before = _bytes(site)
                compileall.compile_dir(site, quiet=2, stripdir=str(draft), invalidation_mode=mode)
                sizes["bytecode"] = _bytes(site) - before
            put_in_place(draft, place)
    except OSError as error:
        raise FailedPrecondition(f"{place} cannot be written: {error.strerror or error}") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise FailedPrecondition(f"a wheel is damaged: {error}; load it again") from None
    return Image(place, sizes, _runs(python))


def _check_replaced(place: Path, force: bool) -> None:
    if not force:
        raise AlreadyExists(f"{place} exists; write to another folder, or replace it (--force)")
    others = {file.name for file in place.iterdir()} - {PACKAGES, BUNDLE, RUN} if place.is_dir() else {place.name}
    if others:
        raise AlreadyExists(
            f"{place} is not only an image, because of {min(others)}, so --force would remove what is not of one; "
            "write to another folder"
        )


def _checked(bundle: Path, machine: str) -> Manifest:
    manifest = Manifest.read(bundle)
    manifest.check_library(bundle)
    manifest.check_fallback(bundle)
    if manifest.cpu.architecture != machine:
        raise InvalidArgument(
            f"{bundle} was built for {manifest.cpu.architecture}, the image is for {machine}; "
            "compile it with --device-target for the device"
        )
    return manifest


def _check_packages(
    wheels: Sequence[Path], without: Sequence[str], manifest: Manifest | None, bundle: str | os.PathLike[str] | None
) -> None:
    """Check that the packages that are left out are there, and that a bundle is of the image's TVM."""
    versions = {_normal(name): version for name, version, *_ in (wheel.name.split("-") for wheel in wheels)}
    for name in without:
        if _normal(name) not in versions:
            raise InvalidArgument(
                f"the package {name!r} is not one of {', '.join(sorted(versions))}; nothing to leave out"
            )
    own = versions.get("apache_tvm")
    if manifest is not None and own is not None and manifest.tvm_version != own:
        raise FailedPrecondition(
            f"{bundle} was built by TVM {manifest.tvm_version}, the image has TVM {own}; compile it again, or have "
            f"its version (--with apache-tvm=={manifest.tvm_version})"
        )


def _copy_bundle(bundle: Path, manifest: Manifest, place: Path) -> None:
    """Copy the bundle's own files. Others in its folder are not for devices: a repository has the offloaded part."""
    place.mkdir()
    for name in (MANIFEST, LIBRARY, *(fallback.library for fallback in manifest.fallback)):
        shutil.copyfile(bundle / name, place / name)


def _declared(python: str) -> list[str]:
    try:
        declared = importlib.metadata.requires("zmq-offload") or ()
    except importlib.metadata.PackageNotFoundError:
        raise FailedPrecondition(
            "what zmq-offload needs is not known, since it is not installed; use pip install"
        ) from None
    return requirements(declared, "tvm", python)


def _runs(python: str) -> bool:
    """Whether this process's Python is of that version."""
    return python == f"{sys.version_info[0]}.{sys.version_info[1]}"


def _fetch(arguments: Iterable[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip failed"]
        if "connection broken by" in done.stderr:
            raise FailedPrecondition(
                "wheels for the device cannot be had: the package index does not answer; check the network, or give a "
                "folder of wheels (--wheels)"
            )
        raise FailedPrecondition(f"wheels for the device cannot be had: {said[-1].removeprefix('ERROR: ')}")


def _unpack(wheel: Path, site: Path) -> int:
    """Copy what a device needs of a wheel. Returns its bytes."""
    total = 0
    with zipfile.ZipFile(wheel) as members:
        for member in members.infolist():
            place = place_of(member.filename)
            if place is not None:
                target = site / place
                target.parent.mkdir(parents=True, exist_ok=True)
                with members.open(member) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
                total += member.file_size
    return total


def _own(site: Path, native: bool) -> int:
    """Copy what a device needs of this package. Compiled code is for this machine and Python."""
    source, target = Path(__file__).parents[1], site / "zmq_offload"
    target.mkdir()
    for file in source.glob("*.py"):
        shutil.copyfile(file, target / file.name)
    left_out = ["__pycache__", "static", "*.pyi", "*.c", *([] if native else ["*.so"])]
    for part in (*ROOMS, *COMMANDS):
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, ignore=shutil.ignore_patterns(*left_out))
        else:
            (target / part).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / part, target / part)
    return _bytes(target)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _normal(name: str) -> str:
    """The name of a package as all of its spellings have it."""
    return re.sub(r"[-_.]+", "_", name).lower()
