"""Certificates for tests, made by the command `openssl`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


_LEAF = "basicConstraints=critical,CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
"""Extensions that Python 3.13 wants (VERIFY_X509_STRICT)."""


class Pair(NamedTuple):
    """The files of a certificate and of its key, in PEM."""

    certificate: Path
    key: Path


class Authority:
    """An authority with certificates for servers and clients."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("the command openssl is not installed")
        self._folder = folder
        self.pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._run("req", "-x509", *_NEW_KEY, "-days", "30", "-subj", f"/CN={name}", *usage, *self._out(self.pair))

    @property
    def file(self) -> str:
        """The authority's own certificate, by which others check those that it makes."""
        return str(self.pair.certificate)

    def make(self, name: str, alternative: str = "DNS:localhost,IP:127.0.0.1", *, days: int = 30) -> Pair:
        """A certificate with a common name and alternative names. With negative `days` it is expired."""
        pair, request, extensions = (
            Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key"),
            self._folder / f"{name}.csr",
            self._folder / f"{name}.ext",
        )
        extensions.write_text(f"{_LEAF}subjectAltName={alternative}\n")
        self._run("req", "-new", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", str(pair.key), "-out", str(request))
        signer = ("-CA", self.file, "-CAkey", str(self.pair.key), "-CAcreateserial", "-extfile", str(extensions))
        out = ("-in", str(request), "-out", str(pair.certificate))
        self._run("x509", "-req", "-days", str(days), *signer, *out)
        return pair

    def _out(self, pair: Pair) -> tuple[str, ...]:
        return ("-keyout", str(pair.key), "-out", str(pair.certificate))

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
