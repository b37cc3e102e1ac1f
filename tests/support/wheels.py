"""Wheels of installed packages, made again of their files: what pip would download, without a network."""

from __future__ import annotations

import importlib.metadata
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

COMPILER = "libtvm_compiler.so"


def write_wheel(folder: Path, name: str, version: str, tag: str, files: Mapping[str, bytes]) -> Path:
    """A wheel of a package, with its metadata."""
    stem = re.sub(r"[-.]+", "_", name)
    wheel = folder / f"{stem}-{version}-{tag}.whl"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(f"{stem}-{version}.dist-info/METADATA", about)
        archive.writestr(f"{stem}-{version}.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{stem}-{version}.dist-info/RECORD", "")
    return wheel


def stand_ins(folder: Path) -> Path:
    """Wheels of a device's packages for aarch64 and any Python, with a file or two each."""
    tag = "py3-none-manylinux_2_28_aarch64"
    for name, version in {"pyzmq": "27", "numpy": "2", "msgpack": "1.1", "msgspec": "0.20", "ml-dtypes": "1"}.items():
        module = name.replace("-", "_")
        write_wheel(folder, name, version, tag, {f"{module}/__init__.py": b"1", f"{module}/tests/test.py": b"2"})
    libraries = {"tvm/lib/libtvm_runtime.so": b"runtime", "tvm/lib/libtvm_compiler.so": b"compiler"}
    write_wheel(folder, "apache-tvm", importlib.metadata.version("apache-tvm"), tag, libraries)
    write_wheel(folder, "apache-tvm-ffi", "0.1.14.post1", tag, {"tvm_ffi/a.py": b""})
    write_wheel(folder, "opencv-python-headless", "4.10", tag, {"cv2.py": b""})
    return folder


def installed_wheels(folder: Path, names: Iterable[str], site: Path) -> Path:
    """Wheels of packages that are installed in `site`, with an empty file for TVM's compiler, which has 259 MB."""
    folder.mkdir()
    for found in importlib.metadata.distributions(path=[str(site)]):
        name = found.metadata["Name"]
        if re.sub(r"[-_.]+", "-", name).lower() not in names:
            continue
        tags = re.findall(r"^Tag: (.+)-(.+)-(.+)$", found.read_text("WHEEL") or "", re.M)
        python, abi = tags[0][:2]
        tag = f"{python}-{abi}-{'.'.join(platform for *_, platform in tags)}"
        stem = re.sub(r"[-.]+", "_", name)
        with zipfile.ZipFile(folder / f"{stem}-{found.version}-{tag}.whl", "w") as archive:
            for file in found.files or ():
                place = Path(str(found.locate_file(file)))
                if ".." in file.parts or not place.is_file():  # a script, or a list of names that pip left out
                    continue
                data = b"" if file.name == COMPILER else place.read_bytes()
                archive.writestr(str(file), data)
    return folder
