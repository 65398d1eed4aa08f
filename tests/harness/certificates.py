"""Throw-away certificates for mutual TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """An authority; `ca.pem` is its certificate."""

    def __init__(self, directory: Path, name: str = "authority"):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.certificate, self.key = directory / "ca.pem", directory / "ca.key"
        self._openssl("req", "-x509", "-keyout", self.key, "-out", self.certificate, "-subj", f"/CN={name}")

    def sign(self, name: str, address: str) -> dict[str, str]:
        """A certificate for both sides: the paths of it and of its key."""
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        extensions = (
            f"subjectAltName=IP:{address}",
            "extendedKeyUsage=serverAuth,clientAuth",
            "basicConstraints=critical,CA:FALSE",
        )
        self._openssl(
            *("req", "-x509", "-CA", self.certificate, "-CAkey", self.key, "-subj", f"/CN={name}"),
            *("-keyout", key, "-out", certificate),
            *(word for extension in extensions for word in ("-addext", extension)),
        )
        return {"certificate": str(certificate), "private_key": str(key)}

    @staticmethod
    def _openssl(*arguments: object) -> None:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        command = ["openssl", *map(str, arguments), *curve]
        subprocess.run(command, check=True, capture_output=True)
