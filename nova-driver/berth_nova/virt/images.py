"""Images: from Glance into the service's store, and out of it again.

The service fetches from Glance by itself, with the user's token. Where Nova
must verify a signature or certificates, nova-compute fetches and verifies, and
the service reads the file. The service's image remembers by which certificates:
a server that demands others has the image verified again.
"""

import hashlib
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

# Bytes that are read at once.
PIECE = 1 << 20


def glance_access(context):
    """How the service reaches Glance: with the user's token and, where Nova is
    configured to send one, with its own beside it. With both, Glance takes the
    user's although it expires while a long image is on its way."""
    session, auth = glance._session_and_auth(context)
    headers = auth.get_headers(session) or {}
    return translate.glance_access(
        next(glance.get_api_servers(context)), context.auth_token,
        headers.get('X-Service-Token'))


def demanded_certs(trusted_certs):
    """Ids of the certificates of which one must vouch for an image, as Nova's
    download decides it: none of them where a signature is enough, None where
    nothing is demanded."""
    if trusted_certs:
        return list(trusted_certs.ids)
    if not CONF.glance.verify_glance_signatures and not (
            CONF.glance.enable_certificate_validation and
            CONF.glance.default_trusted_certificate_ids):
        return None
    if not CONF.glance.enable_certificate_validation:
        return []
    if not CONF.glance.default_trusted_certificate_ids:
        raise exception.CertificateValidationFailed(
            cert_uuid='', reason='the server names no trusted certificates, and [glance] '
            'default_trusted_certificate_ids is empty')
    return list(CONF.glance.default_trusted_certificate_ids)


def _sha512(path):
    digest = hashlib.sha512()
    with open(path, 'rb') as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


class Images:
    """The service's image store, filled from Glance."""

    def __init__(self, client, options):
        self.client = client
        self.options = options
        self.api = glance.API()

    def ensure(self, context, image_id, trusted_certs=None):
        """Has the image in the store: its description, and whether it had to come."""
        demanded = demanded_certs(trusted_certs)
        found = None
        try:
            found = self.client.get('/v1/images/%s' % image_id)
            if translate.is_verified(found, demanded):
                return found, False
        except exception.ImageNotFound:
            pass
        try:
            image = self.api.get(context, image_id)
        except (exception.ImageNotFound, exception.ImageNotAuthorized) as error:
            # No other host gets it either: by this one a build ends with the reason.
            raise exception.ImageUnacceptable(
                image_id=image_id, reason=error.format_message()) from error
        if image.get('status') != 'active':
            raise exception.ImageNotActive(image_id=image_id)
        if demanded is None:
            self._import(image_id, image, glance_access(context))
        else:
            self._import_verified(context, image_id, image, trusted_certs, demanded)
        return self.demand(image_id, trusted_certs), found is None

    def demand(self, image_id, trusted_certs=None):
        """The image in the store; refused where it is not verified as demanded."""
        image = self.client.get('/v1/images/%s' % image_id)
        if not translate.is_verified(image, demanded_certs(trusted_certs)):
            raise exception.ImageUnacceptable(
                image_id=image_id,
                reason='its content on this host is not the one whose signature was verified')
        return image

    def _import(self, image_id, image, source, verification=None):
        self.client.put('/v1/images/%s' % image_id,
                        translate.image_import(image, source, verification),
                        seconds=self.options.image_timeout)

    def _import_verified(self, context, image_id, image, trusted_certs, demanded):
        directory = os.path.join(CONF.instances_path, 'berth')
        fileutils.ensure_tree(directory)
        with tempfile.TemporaryDirectory(dir=directory) as place:
            path = os.path.join(place, image_id)
            self.api.download(context, image_id, dest_path=path, trusted_certs=trusted_certs)
            # Only after nova-compute verified it: otherwise the download raised.
            verified = {**image, 'os_hash_algo': 'sha512', 'os_hash_value': _sha512(path),
                        'size': os.path.getsize(path)}
            arguments = (image_id, verified, translate.file_source(path),
                         translate.verification(image, demanded))
            try:
                self._import(*arguments)
            except exception.NovaException as error:
                if faults.code_of(error) != 'image-exists':
                    raise
                # What lies here under this id is not what was signed.
                LOG.warning('Image %s has other content here than the verified one, which '
                            'takes its place', image_id)
                self.client.delete('/v1/images/%s' % image_id)
                self._import(*arguments)

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
