"""Content that comes slowly, or not at all, keeps no other tenant's image out."""

from __future__ import annotations

import os
import threading
import time
import uuid

import imagelib
import pytest
from harness import wait_for
from harness.source import ImageSource

MIB = 1 << 20


@pytest.fixture(scope="module")
def settings():
    return {"images": {"concurrency": 1}}


class Trickle(ImageSource):
    """Gives a little at a time, each within any patience, until it is released."""

    def give(self, sink) -> None:
        content = self.content
        while content:
            piece = len(content) if self.release.is_set() else 8192
            sink.write(content[:piece])
            sink.flush()
            content = content[piece:]
            self.release.wait(0.2)


class Silent(ImageSource):
    """Gives nothing until it is released."""

    def give(self, sink) -> None:
        self.release.wait()
        sink.write(self.content)


class Interrupted(ImageSource):
    """Stands still in the middle until it is released."""

    def __init__(self, content: bytes):
        super().__init__(content, hold_at=len(content) // 2)


@pytest.mark.parametrize("kind", [Trickle, Silent, Interrupted])
def test_another_image_arrives_meanwhile(service, busybox_file, kind):
    tree = imagelib.busybox_tree()
    tree.file("large", os.urandom(2 * MIB))
    slow, joined, done = str(uuid.uuid4()), 3, []
    with kind(tree.tar()) as glance:

        def fetch() -> None:
            done.append(service.client.put(f"/v1/images/{slow}", glance.source()).status)

        # Those who want the same image wait for it without a slot, too.
        threads = [threading.Thread(target=fetch) for _ in range(joined)]
        for thread in threads:
            thread.start()
        wait_for("the slow import to begin", lambda: glance.requests)
        begun = time.monotonic()
        quick = service.import_image(busybox_file)
        assert time.monotonic() - begun < 20
        assert done == []
        glance.release.set()
        for thread in threads:
            thread.join()
    assert len(done) == joined and set(done) <= {200, 201}
    instance = service.spawn(slow, command=["/bin/sleep", "1000"])
    assert instance.sh("stat -c %s /large") == str(2 * MIB)
    instance.delete()
    for image in (slow, quick):
        service.client.delete(f"/v1/images/{image}")
