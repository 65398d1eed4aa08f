"""The config drive, as a directory: cloud-init looks for it at `/config-drive`.

Written before the first start, and only where Nova wants one. Of the dated
copies that Nova keeps of the same data, only `latest` is written, which every
reader falls back to.
"""

from nova.api.metadata import base
from nova.virt import configdrive
from nova.virt.berth import translate

ROOT = '/config-drive'
# The user data and the password in it are root's business.
MODE = 0o400


def files(instance, network_info, injected_files, admin_password):
    """The files for an instance; none when it has no config drive."""
    if not configdrive.required_by(instance):
        return []
    metadata = base.InstanceMetadata(
        instance, content=injected_files or [], network_info=network_info,
        extra_md={'admin_pass': admin_password} if admin_password else {})
    return [translate.injected_file('%s/%s' % (ROOT, path), content, MODE)
            for path, content in metadata.metadata_for_config_drive()
            if _is_current(path)]


def _is_current(path):
    version = path.split('/')[1]
    return version in ('latest', 'content')
