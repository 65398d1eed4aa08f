"""Container images, made with nothing but Python's standard library.

The same input gives the same bytes: times, owners and order are fixed, so an
image's hash says whether it has changed. Used by the image scripts, the tests
and the benchmark.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

EPOCH = 1_700_000_000
CREATED = "2023-11-14T22:13:20Z"


@dataclass
class Tree:
    """A file tree in memory, written as a tar in the order of its paths."""

    members: dict[str, tuple[tarfile.TarInfo, bytes]] = field(default_factory=dict)

    def _add(self, path: str, kind: bytes, mode: int, content: bytes = b"", **attributes) -> None:
        info = tarfile.TarInfo(path.strip("/"))
        info.type, info.mode, info.size, info.mtime = kind, mode, len(content), EPOCH
        for name, value in attributes.items():
            setattr(info, name, value)
        self._add_parents(info.name)
        self.members[info.name] = (info, content)

    def _add_parents(self, name: str) -> None:
        parent = os.path.dirname(name)
        if parent and parent not in self.members:
            self._add(parent, tarfile.DIRTYPE, 0o755)

    def directory(self, path: str, mode: int = 0o755, **owner) -> None:
        """A directory; missing parents are made."""
        self._add(path, tarfile.DIRTYPE, mode, **owner)

    def file(self, path: str, content: bytes | str, mode: int = 0o644, **owner) -> None:
        """A regular file."""
        data = content.encode() if isinstance(content, str) else content
        self._add(path, tarfile.REGTYPE, mode, data, **owner)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, tarfile.SYMTYPE, 0o777, linkname=target)

    def hardlink(self, path: str, target: str) -> None:
        """A hard link to a path of this tree that sorts before it."""
        self._add(path, tarfile.LNKTYPE, 0o644, linkname=target.strip("/"))

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device node."""
        self._add(path, tarfile.CHRTYPE, mode, devmajor=major, devminor=minor)

    def whiteout(self, path: str) -> None:
        """Marks a file of a lower layer as deleted (OCI image specification)."""
        directory, name = os.path.split(path.strip("/"))
        self._add(os.path.join(directory, f".wh.{name}"), tarfile.REGTYPE, 0o644)

    def tar(self) -> bytes:
        """The tree as an uncompressed tar."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name in sorted(self.members):
                info, content = self.members[name]
                archive.addfile(info, io.BytesIO(content))
        return out.getvalue()


def busybox_tree(program: Path = Path("/bin/busybox")) -> Tree:
    """BusyBox and a symbolic link for each of its applets, in the usual directories."""
    tree = Tree()
    tree.file("bin/busybox", program.read_bytes(), 0o755)
    listing = subprocess.run([program, "--list-full"], check=True, capture_output=True, text=True).stdout
    for applet in listing.split():
        if applet not in ("bin/busybox", "linuxrc"):
            tree.symlink(applet, "/bin/busybox")
    for directory in ("dev", "proc", "sys", "run", "mnt", "var/log", "home"):
        tree.directory(directory)
    tree.directory("root", 0o700)
    tree.directory("tmp", 0o1777)
    tree.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/srv/www:/bin/sh\n")
    tree.file("etc/group", "root:x:0:\nwww:x:33:\naudio:x:29:www\n")
    tree.file("etc/hostname", "image\n")
    tree.file("etc/nsswitch.conf", "hosts: files dns\n")
    return tree


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def image_config(layers: list[bytes], config: dict) -> bytes:
    """The OCI image configuration over uncompressed layers."""
    document = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "created": CREATED,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer)}" for layer in layers]},
        "history": [{"created": CREATED, "created_by": "scripts/imagelib.py"} for _ in layers],
    }
    return json.dumps(document, sort_keys=True).encode()


def docker_archive(layers: list[bytes], config: dict, tag: str) -> bytes:
    """What `docker save` writes: one directory a layer, a config, manifest.json, repositories."""
    document = image_config(layers, config)
    tree, paths, parent = Tree(), [], ""
    for layer in layers:
        # Docker's v1 layer id: a hash over the layer and its parent's id.
        identity = sha256(f"{parent} {sha256(layer)}".encode())
        legacy = {"id": identity, "created": CREATED, "os": "linux"}
        tree.file(f"{identity}/VERSION", "1.0")
        tree.file(f"{identity}/json", json.dumps(legacy | ({"parent": parent} if parent else {})))
        tree.file(f"{identity}/layer.tar", layer)
        paths.append(f"{identity}/layer.tar")
        parent = identity
    name = f"{sha256(document)}.json"
    tree.file(name, document)
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": paths}]
    tree.file("manifest.json", json.dumps(manifest))
    repository, _, version = tag.rpartition(":")
    tree.file("repositories", json.dumps({repository: {version: parent}}))
    return tree.tar()


def oci_archive(layers: list[bytes], config: dict, tag: str) -> bytes:
    """An OCI image layout in a tar, its layers gzipped."""
    tree = Tree()

    def blob(media_type: str, data: bytes) -> dict:
        tree.file(f"blobs/sha256/{sha256(data)}", data)
        return {"mediaType": media_type, "digest": f"sha256:{sha256(data)}", "size": len(data)}

    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": blob(f"{kind}.config.v1+json", image_config(layers, config)),
        "layers": [blob(f"{kind}.layer.v1.tar+gzip", gzip.compress(layer, 6, mtime=0)) for layer in layers],
    }
    entry = blob(manifest["mediaType"], json.dumps(manifest, sort_keys=True).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    index = {"schemaVersion": 2, "manifests": [entry]}
    tree.file("index.json", json.dumps(index))
    tree.file("oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}))
    return tree.tar()


def write_if_changed(path: Path, data: bytes) -> bool:
    """Writes atomically; true when the content is new."""
    if path.exists() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(data)
    temporary.rename(path)
    return True
