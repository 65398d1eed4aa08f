"""Snapshots: the service copies, packs and uploads; Nova's records are kept here.

Nova has made the image's record already. When anything here fails, it deletes
that record, and gives the instance its state back.
"""

from nova.compute import task_states
from nova.virt.berth import images

# A docker archive, in the terms that Glance has for it. Its own checks let
# `raw` pass, and berth recognises an image by its content.
FORMATS = {'disk_format': 'raw', 'container_format': 'docker'}


def snapshot(client, image_api, context, instance, image_id, update_task_state, seconds):
    """POST /v1/instances/{id}/snapshot"""
    update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
    # Glance takes no content before it is told the formats. The properties
    # are there: Nova gives a snapshot those of its base.
    image_api.update(context, image_id, dict(FORMATS), purge_props=False)
    update_task_state(task_state=task_states.IMAGE_UPLOADING,
                      expected_state=task_states.IMAGE_PENDING_UPLOAD)
    destination = {**images.glance_access(context), 'image_id': image_id}
    # Never twice: Glance takes an image's content once.
    client.post('/v1/instances/%s/snapshot' % instance.uuid, {'destination': destination},
                seconds=seconds, once=True)
