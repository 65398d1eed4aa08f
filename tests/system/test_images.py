"""Images: every format by content, shared layers, one fetch, refusal of what is wrong."""

import contextlib
import gzip
import hashlib
import http.server
import io
import lzma
import os
import subprocess
import tarfile
import threading
import time
import uuid

import imagelib
import pytest
from harness import Fault, wait_for

SHELL = {"Cmd": ["/bin/sh", "-c", "echo started; exec sleep 1000"]}


@pytest.fixture(scope="module")
def layers():
    """Three layers; the upper ones replace, delete, hide, link."""
    base = imagelib.busybox_tree()
    base.file("data/replaced", "old")
    base.file("data/deleted", "old")
    base.file("hidden/below", "old")
    base.file("data/set-user-id", "x", 0o4755)
    middle = imagelib.Tree()
    middle.file("data/replaced", "new")
    middle.whiteout("data/deleted")
    middle.file("hidden/.wh..wh..opq", "")
    middle.file("hidden/above", "new")
    middle.file("data/a", "linked")
    middle.hardlink("data/b", "data/a")
    middle.symlink("data/absolute", "/data/a")
    # A file capability: cap_net_raw+ep, version 2.
    middle.file(
        "data/capable",
        "x",
        0o755,
        pax_headers={
            "SCHILY.xattr.security.capability": b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".decode(
                "latin-1"
            ),
            "SCHILY.xattr.user.colour": "blue",
        },
    )
    upper = imagelib.Tree()
    upper.file("data/owned", "x", 0o640, uid=33, gid=29)
    return [base.tar(), middle.tar(), upper.tar()]


def flat(layers) -> bytes:
    """A plain root file system."""
    tree = imagelib.busybox_tree()
    tree.symlink("sbin/init", "/bin/busybox")
    tree.file("etc/inittab", "::sysinit:/bin/echo started\n::respawn:-/bin/sh\n")
    tree.file("data/replaced", "new")
    return tree.tar()


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-3"], input=data, capture_output=True, check=True).stdout


FORMATS = {
    "docker-archive": lambda layers: imagelib.docker_archive(layers, SHELL, "t:1"),
    "oci-archive": lambda layers: imagelib.oci_archive(layers, SHELL, "t:1"),
    "docker-archive.gz": lambda layers: gzip.compress(imagelib.docker_archive(layers, SHELL, "t:1"), 1),
    "rootfs-tar": flat,
    "rootfs-tar.gz": lambda layers: gzip.compress(flat(layers), 1),
    "rootfs-tar.xz": lambda layers: lzma.compress(flat(layers), preset=0),
    "rootfs-tar.zst": lambda layers: zstd(flat(layers)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_recognised_by_content_and_starts(service, layers, tmp_path, name):
    # The file's own name lies.
    path = tmp_path / "image.qcow2"
    path.write_bytes(FORMATS[name](layers))
    image = service.import_image(path)
    shown = service.client.get(f"/v1/images/{image}")
    assert shown["format"] == name.split(".")[0]
    assert shown["size"] == path.stat().st_size
    assert shown["hash"]["value"] == hashlib.sha512(path.read_bytes()).hexdigest()
    instance = service.spawn(image)
    instance.wait_console("started")
    assert instance.sh("cat /data/replaced") == "new"
    instance.delete()
    service.client.delete(f"/v1/images/{image}")


def test_layers_are_applied_as_the_specification_says(service, layers, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(imagelib.oci_archive(layers, SHELL, "t:1"))
    image = service.import_image(path)
    instance = service.spawn(image)
    assert instance.sh("ls /data /hidden").split() == [
        "/data:", "a", "absolute", "b", "capable", "owned", "replaced", "set-user-id",
        "/hidden:", "above",
    ]  # fmt: skip
    assert instance.sh("stat -c %i /data/a") == instance.sh("stat -c %i /data/b")
    assert instance.sh("cat /data/absolute") == "linked"
    assert instance.sh("stat -c '%a %u %g' /data/owned /data/set-user-id") == "640 33 29\n4755 0 0"
    (service_layer,) = service.state_dir.glob("images/**/data/capable")
    capability = subprocess.run(["getcap", service_layer], capture_output=True, text=True).stdout
    assert "cap_net_raw=ep" in capability.replace("+", "=")
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
    assert not list(service.state_dir.glob("images/**/data/capable"))


def test_images_share_layers_and_instances_share_images(service, layers, tmp_path):
    paths = [tmp_path / "one", tmp_path / "two"]
    paths[0].write_bytes(imagelib.docker_archive(layers[:2], SHELL, "t:1"))
    paths[1].write_bytes(imagelib.oci_archive(layers, SHELL, "t:2"))
    one, two = map(service.import_image, paths)
    assert len(list(service.state_dir.glob("images/**/bin/busybox"))) == len(
        {
            layer
            for image in service.client.get("/v1/images")["images"]
            for layer in image["layers"]
            if has_busybox(service, layer)
        }
    )
    shown = [service.client.get(f"/v1/images/{i}")["layers"] for i in (one, two)]
    assert shown[0] == shown[1][:2]
    first, second = service.spawn(one), service.spawn(one)
    first.sh("echo mine > /data/replaced; rm /data/a")
    assert second.sh("cat /data/replaced /data/a") == "newlinked"
    service.client.delete(f"/v1/images/{two}")
    assert second.sh("cat /data/a") == "linked"
    for instance in (first, second):
        instance.delete()
    service.client.delete(f"/v1/images/{one}")


def has_busybox(service, digest):
    name = digest.split(":")[-1]
    return any(name in str(p) for p in service.state_dir.glob("images/**/bin/busybox"))


def test_an_image_in_use_cannot_be_deleted(service, layers, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(FORMATS["docker-archive"](layers))
    image = service.import_image(path)
    instance = service.define(image)
    assert service.client.get(f"/v1/images/{image}")["users"] == [instance.id]
    with pytest.raises(Fault) as fault:
        service.client.delete(f"/v1/images/{image}")
    assert (fault.value.status, fault.value.code) == (409, "image-in-use")
    instance.delete()
    service.client.delete(f"/v1/images/{image}")
    with pytest.raises(Fault) as fault:
        service.client.get(f"/v1/images/{image}")
    assert fault.value.code == "image-not-found"


def test_an_import_is_idempotent_and_other_content_conflicts(service, layers, tmp_path):
    path, other = tmp_path / "image", tmp_path / "other"
    path.write_bytes(FORMATS["docker-archive"](layers))
    other.write_bytes(FORMATS["oci-archive"](layers))
    image = service.import_image(path)
    assert service.import_image(path, image) == image
    with pytest.raises(Fault) as fault:
        service.import_image(other, image, size=other.stat().st_size)
    assert (fault.value.status, fault.value.code) == (409, "image-exists")
    service.client.delete(f"/v1/images/{image}")


@contextlib.contextmanager
def glance(content: bytes, token: str = "secret-token"):
    """An image service that counts, answers slowly, and checks the token."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            if self.headers.get("X-Auth-Token") != token:
                return self.send_error(401)
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            try:
                self.wfile.write(content[:1000])
                time.sleep(1)
                self.wfile.write(content[1000:])
            except OSError:  # the service hung up: it refuses what it gets
                pass

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def from_glance(server, token="secret-token", **fields):
    endpoint = f"http://127.0.0.1:{server.server_port}"
    return {"source": {"type": "glance", "endpoint": endpoint, "token": token}} | fields


def test_concurrent_imports_of_one_image_fetch_it_once(service, layers):
    content = FORMATS["docker-archive"](layers)
    image, outcomes = str(uuid.uuid4()), []
    with glance(content) as server:

        def fetch():
            body = from_glance(server, size=len(content))
            outcomes.append(service.client.put(f"/v1/images/{image}", body).status)

        threads = [threading.Thread(target=fetch) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 6
        assert len(server.requests) == 1, server.requests
        assert server.requests[0] == f"/v2/images/{image}/file"
    service.client.delete(f"/v1/images/{image}")


def test_glance_refusing_the_token_is_its_own_fault_and_no_secret_is_logged(service):
    with glance(b"x" * 2000) as server, pytest.raises(Fault) as fault:
        service.client.put(f"/v1/images/{uuid.uuid4()}", from_glance(server, token="wrong-secret"))
    assert fault.value.code == "glance-forbidden"
    log = service.log.read_text(errors="replace")
    assert "wrong-secret" not in log
    assert "secret-token" not in log


def test_glance_that_does_not_answer_is_unavailable(service):
    source = {"type": "glance", "endpoint": "http://127.0.0.1:9", "token": "t"}
    with pytest.raises(Fault) as fault:
        service.client.put(f"/v1/images/{uuid.uuid4()}", {"source": source})
    assert (fault.value.status, fault.value.code) == (502, "glance-unavailable")


def test_an_import_outlives_the_connection_that_asked_for_it(service, layers):
    content = FORMATS["docker-archive"](layers)
    image = str(uuid.uuid4())
    with glance(content) as server:
        with pytest.raises(OSError):
            service.client.put(f"/v1/images/{image}", from_glance(server), timeout=0.3)
        wait_for("the import", lambda: imported(service, image))
    operations = [o for o in service.client.get("/v1/operations")["operations"] if o["target"] == image]
    assert [o["status"] for o in operations] == ["succeeded"]
    service.client.delete(f"/v1/images/{image}")


def imported(service, image):
    try:
        return service.client.get(f"/v1/images/{image}")
    except Fault:
        return None


def hostile(**kinds):
    """A tar with one member that could reach outside."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("bin", "etc", "sbin", "usr"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(directory)
        info = tarfile.TarInfo(kinds.pop("name"))
        for key, value in kinds.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(b"x" * info.size))
    return out.getvalue()


REFUSED = {
    "parent path": lambda: hostile(name="../../outside", size=1),
    "link out of the tree as a parent": lambda: through_a_link(),
    "hard link out of the tree": lambda: hostile(
        name="etc/x", type=tarfile.LNKTYPE, linkname="../../etc/shadow"
    ),
    "nothing an image could be": lambda: b"\x7fELF" + b"\0" * 100_000,
    "empty": lambda: b"",
    "half an archive": lambda: imagelib.busybox_tree().tar()[:100_000],
    "half a gzip": lambda: gzip.compress(imagelib.busybox_tree().tar())[:50_000],
    "qcow2 with a backing file": lambda: b"QFI\xfb\0\0\0\3" + b"\0" * 7 + b"\x68" + b"/etc/shadow" * 20,
    "manifest that names a layer outside": lambda: lying_manifest("../../etc/passwd"),
    "manifest that names no layer of the archive": lambda: lying_manifest("nowhere/layer.tar"),
}


def through_a_link() -> bytes:
    tree = imagelib.busybox_tree()
    tree.symlink("escape", "/")
    base = tree.tar()
    upper = imagelib.Tree()
    upper.file("x", "")
    upper.members.clear()
    info = tarfile.TarInfo("escape/berth-was-here")
    info.size = 1
    upper.members["escape/berth-was-here"] = (info, b"x")
    return imagelib.docker_archive([base, upper.tar()], SHELL, "t:1")


def lying_manifest(layer: str) -> bytes:
    tree = imagelib.Tree()
    base = imagelib.busybox_tree().tar()
    config = imagelib.image_config([base], SHELL)
    tree.file("config.json", config)
    tree.file("layer.tar", base)
    manifest = f'[{{"Config":"config.json","RepoTags":["t:1"],"Layers":["{layer}"]}}]'
    tree.file("manifest.json", manifest)
    return tree.tar()


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_or_broken_image_does_not_reach_outside(service, tmp_path, name):
    path = tmp_path / "image"
    path.write_bytes(REFUSED[name]())
    image = str(uuid.uuid4())
    if name == "link out of the tree as a parent":
        # Overlaid layers may meet a link; resolved inside the tree it is harmless.
        with contextlib.suppress(Fault):
            service.import_image(path, image)
            service.client.delete(f"/v1/images/{image}")
    else:
        with pytest.raises(Fault) as fault:
            service.import_image(path, image)
        assert fault.value.status in (400, 422), fault.value
        assert len(fault.value.detail) > 20, "the fault names no reason"
        assert imported(service, image) is None
    for place in ("/berth-was-here", "/outside", str(service.base / "outside")):
        assert not os.path.lexists(place)


@pytest.mark.each_runtime
def test_a_device_of_an_image_opens_nothing(service, tmp_path):
    path = tmp_path / "image"
    tree = imagelib.busybox_tree()
    device = tarfile.TarInfo("etc/mem")
    device.type, device.mode, device.devmajor, device.devminor = tarfile.CHRTYPE, 0o666, 1, 1
    tree.members["etc/mem"] = (device, b"")
    path.write_bytes(imagelib.docker_archive([tree.tar()], SHELL, "t:1"))
    image = service.import_image(path)
    instance = service.spawn(image)
    result = instance.run("/bin/sh", "-c", "test -c /etc/mem && head -c 1 /etc/mem")
    assert result.returncode != 0
    assert "Permission denied" in result.stderr or "not permitted" in result.stderr
    instance.delete()
    service.client.delete(f"/v1/images/{image}")


def test_wrong_hash_and_wrong_size_are_refused(service, layers, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(FORMATS["docker-archive"](layers))
    right = hashlib.sha512(path.read_bytes()).hexdigest()
    wrong = {"algorithm": "sha512", "value": "0" * 128}
    for fields in ({"hash": wrong}, {"size": 12}):
        with pytest.raises(Fault) as fault:
            service.import_image(path, **fields)
        assert (fault.value.status, fault.value.code) == (422, "image-corrupt")
    image = service.import_image(path, hash={"algorithm": "sha512", "value": right})
    service.client.delete(f"/v1/images/{image}")


def test_a_layer_that_is_not_what_its_digest_says_is_refused(service, layers, tmp_path):
    archive = bytearray(imagelib.oci_archive(layers, SHELL, "t:1"))
    at = archive.find(b"\x1f\x8b\x08") + 5000  # inside the first layer's blob
    archive[at] ^= 0xFF
    path = tmp_path / "image"
    path.write_bytes(archive)
    with pytest.raises(Fault) as fault:
        service.import_image(path)
    assert fault.value.status == 422


def test_sparse_files_stay_sparse(service, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "image.tar").write_bytes(imagelib.busybox_tree().tar())
    subprocess.run(["tar", "-xf", "image.tar"], cwd=root, check=True)
    (root / "image.tar").unlink()
    with (root / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"middle")
    path = tmp_path / "image"
    tar = ["tar", "--sparse", "--format=pax", "--numeric-owner", "-cf", path, "-C", root, "."]
    subprocess.run(tar, check=True)
    image = service.import_image(path)
    (sparse,) = service.state_dir.glob("images/**/sparse")
    assert sparse.stat().st_size == 64 << 20
    assert sparse.stat().st_blocks * 512 < 1 << 20
    with sparse.open("rb") as file:
        file.seek(32 << 20)
        assert file.read(6) == b"middle"
    service.client.delete(f"/v1/images/{image}")


def test_a_small_disk_for_a_large_image_is_refused(service, tmp_path):
    tree = imagelib.busybox_tree()
    tree.symlink("sbin/init", "/bin/busybox")
    path = tmp_path / "image"
    # No zeros: they would be holes, which need no disk.
    content = f"yes | head -c {1100 << 20}"
    raw = subprocess.Popen(content, shell=True, stdout=subprocess.PIPE)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name in sorted(tree.members):
            info, content = tree.members[name]
            archive.addfile(info, io.BytesIO(content))
        big = tarfile.TarInfo("big")
        big.size = 1100 << 20
        archive.addfile(big, raw.stdout)
    raw.wait()
    image = service.import_image(path)
    with pytest.raises(Fault) as fault:
        service.define(image, flavor={"root_gb": 1})
    assert (fault.value.status, fault.value.code) == (422, "flavor-disk-too-small")
    service.client.delete(f"/v1/images/{image}")
