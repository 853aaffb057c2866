"""An authority of the test's own, and certificates by it. Needs the program openssl."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


class Authority:
    """Makes certificates in a directory. Without openssl the test is skipped here and fails in CI."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key, self.certificate = directory / f"{name}.key", directory / f"{name}.pem"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-keyout", str(self._key), "-out", str(self.certificate), "-subj", f"/CN={name}"),
        )

    def issue(self, name: str, *names: str) -> tuple[Path, Path]:
        """Certificate and key for the subject alternative names, such as `DNS:localhost` or `IP:127.0.0.1`."""
        key, request, certificate = (self._directory / f"{name}.{end}" for end in ("key", "csr", "pem"))
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join(names)}\n" if names else "")
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}"),
        )
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(certificate)),
        )
        return certificate, key


def _openssl(*arguments: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        message = "no openssl is here"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    subprocess.run([program, *arguments], check=True, capture_output=True)
