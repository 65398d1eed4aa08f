"""Snapshots: the service copies, packs and uploads; Nova's records are kept here.

Nova has made the image's record already. When anything here fails, it deletes
that record, and gives the instance its state back.
"""

from nova.compute import task_states
from nova.virt.berth import images

# In the terms that Glance has for them. Its own checks let `raw` pass, and
# berth recognises an image by its content.
FORMATS = {
    'docker-archive': {'disk_format': 'raw', 'container_format': 'docker'},
    'rootfs-tar': {'disk_format': 'raw', 'container_format': 'compressed'},
    'qcow2': {'disk_format': 'qcow2', 'container_format': 'bare'},
}
GIB = 1 << 30


def choose_format(client, instance, wanted):
    """What the snapshot of an instance is made as, and its base: `[berth] snapshot_format`."""
    made = client.get('/v1/instances/%s' % instance.uuid)
    base = client.get('/v1/images/%s' % made['image_id'])
    if wanted == 'as-base':
        wanted = 'qcow2' if base['format'] in ('qcow2', 'raw') else base['format']
    # Of some disks none is made again, and of what is no disk none ever.
    disk = base.get('disk') or {'refusal': 'none'}
    if wanted == 'qcow2' and not disk.get('refusal'):
        return 'qcow2', base
    # A tarball has no place for what an application is started by.
    config = base['config']
    by_config = config.get('entrypoint') or config.get('cmd') or not config.get('init')
    return 'rootfs-tar' if wanted == 'rootfs-tar' and not by_config else 'docker-archive', base


def snapshot(client, image_api, context, instance, image_id, update_task_state, options):
    """POST /v1/instances/{id}/snapshot"""
    update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
    wanted = options.snapshot_format
    base = None
    if wanted != 'docker-archive':
        wanted, base = choose_format(client, instance, wanted)
    told = dict(FORMATS[wanted])
    if wanted == 'qcow2':
        # Nova counts with the flavor's disk, and berth lets that be smaller than the image's.
        least = -(-base['disk']['size'] // GIB)
        if least > (image_api.get(context, image_id).get('min_disk') or 0):
            told['min_disk'] = least
    # Glance takes no content before it is told the formats. The properties
    # are there: Nova gives a snapshot those of its base.
    image_api.update(context, image_id, told, purge_props=False)
    update_task_state(task_state=task_states.IMAGE_UPLOADING,
                      expected_state=task_states.IMAGE_PENDING_UPLOAD)
    destination = {**images.glance_access(context), 'image_id': image_id}
    # Never twice: Glance takes an image's content once.
    client.post('/v1/instances/%s/snapshot' % instance.uuid, {'destination': destination, 'format': wanted},
                seconds=options.image_timeout, once=True)
