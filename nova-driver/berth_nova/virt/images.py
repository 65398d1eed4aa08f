"""Images: from Glance into the service's store, and out of it again.

The service fetches from Glance by itself, with the user's token. Where Nova
must verify a signature or certificates, nova-compute fetches and verifies, and
the service reads the file.
"""

import os
import tempfile

from oslo_log import log as logging
from oslo_utils import fileutils
from oslo_utils import timeutils

from nova import conf as nova_conf
from nova import exception
from nova.image import glance
from nova.virt.berth import faults
from nova.virt.berth import translate

LOG = logging.getLogger(__name__)
CONF = nova_conf.CONF


def glance_access(context):
    """How the service reaches Glance: with the user's token and, where Nova is
    configured to send one, with its own beside it. With both, Glance takes the
    user's although it expires while a long image is on its way."""
    session, auth = glance._session_and_auth(context)
    headers = auth.get_headers(session) or {}
    return translate.glance_access(
        next(glance.get_api_servers(context)), context.auth_token,
        headers.get('X-Service-Token'))


class Images:
    """The service's image store, filled from Glance."""

    def __init__(self, client, options):
        self.client = client
        self.options = options
        self.api = glance.API()

    def ensure(self, context, image_id, trusted_certs=None):
        """Has the image in the store: its description, and whether it had to come."""
        try:
            return self.client.get('/v1/images/%s' % image_id), False
        except exception.ImageNotFound:
            pass
        image = self.api.get(context, image_id)
        if image.get('status') != 'active':
            raise exception.ImageNotActive(image_id=image_id)
        if trusted_certs or CONF.glance.verify_glance_signatures:
            self._import_verified(context, image_id, image, trusted_certs)
        else:
            self._import(image_id, image, glance_access(context))
        return self.client.get('/v1/images/%s' % image_id), True

    def _import(self, image_id, image, source, verified=False):
        self.client.put('/v1/images/%s' % image_id,
                        translate.image_import(image, source, verified),
                        seconds=self.options.image_timeout)

    def _import_verified(self, context, image_id, image, trusted_certs):
        directory = os.path.join(CONF.instances_path, 'berth')
        fileutils.ensure_tree(directory)
        with tempfile.TemporaryDirectory(dir=directory) as place:
            path = os.path.join(place, image_id)
            self.api.download(context, image_id, dest_path=path, trusted_certs=trusted_certs)
            # Only after nova-compute verified it: otherwise the download raised.
            self._import(image_id, image, translate.file_source(path), verified=True)

    def evict(self, needed):
        """Removes images that nobody has used for as long as Nova keeps them.

        :param needed: ids of images that instances of this host have
        """
        if not CONF.image_cache.remove_unused_base_images:
            return
        age = CONF.image_cache.remove_unused_original_minimum_age_seconds
        for image in self.client.get('/v1/images')['images']:
            if image['users'] or image['id'] in needed:
                continue
            if not timeutils.is_older_than(timeutils.parse_isotime(image['last_used_at']), age):
                continue
            try:
                self.client.delete('/v1/images/%s' % image['id'])
                LOG.info('Image %s was unused and is removed', image['id'])
            except exception.NovaException as error:
                if faults.code_of(error) not in ('image-not-found', 'image-in-use'):
                    raise
