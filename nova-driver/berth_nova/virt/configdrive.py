"""The config drive, as a directory: cloud-init looks for it at `/config-drive`.

Written before the first start, and only where Nova wants one. Nova keeps many
dated copies of the same data. Of these, `latest` is written, which every reader
falls back to, and one with a date, by which cloud-init recognises a config drive.
"""

from nova.api.metadata import base
from nova.virt import configdrive
from nova.virt.berth import translate

ROOT = '/config-drive'
# The user data and the password in it are root's business.
MODE = 0o400
# The newest that cloud-init knows.
DATED = base.ROCKY
VERSIONS = {'latest', 'content', DATED}


def files(instance, network_info, injected_files, admin_password):
    """The files for an instance; none when it has no config drive."""
    if not configdrive.required_by(instance):
        return []
    metadata = base.InstanceMetadata(
        instance, content=injected_files or [], network_info=network_info,
        extra_md={'admin_pass': admin_password} if admin_password else {})
    return [translate.injected_file('%s/%s' % (ROOT, path), content, MODE)
            for path, content in metadata.metadata_for_config_drive()
            if path.split('/')[1] in VERSIONS]
