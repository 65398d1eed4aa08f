"""No secret in a log: every method of the driver, at the level that says most."""

import base64
import inspect
import io
import json
import logging
from unittest import mock

import pytest
from conftest import CONF, IMAGE, UUID, make_flavor, make_instance, make_vif
from fake_service import Fault
from nova import context as nova_context
from nova import exception
from nova import objects
from nova.compute import provider_tree
from nova.compute import task_states
from nova.compute import vm_states
from nova.virt.berth import driver as berth

META = objects.ImageMeta(id=IMAGE, properties=objects.ImageMetaProps())
# One word for each secret, which stands nowhere else.
SECRETS = {what: 'sentinel-%s-%d' % (what, number) for number, what in enumerate([
    'adminpass', 'newpass', 'rescuepass', 'rebuildpass', 'token', 'servicetoken', 'userdata', 'file',
    'environment', 'property'])}
PATH = '/v1/instances/%s' % UUID


@pytest.fixture
def said():
    """All that is logged, of every logger, whatever its own level; tracebacks too."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter('%(name)s %(levelname)s %(message)s %(args)s'))
    root = logging.getLogger()
    levels = {logger: logger.level for logger in [root, *(
        logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]}
    for logger in levels:
        logger.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield text.getvalue
    root.removeHandler(handler)
    for logger, level in levels.items():
        logger.setLevel(level)


@pytest.fixture
def secretive(driver, monkeypatch):
    """A context and an instance that are full of secrets."""
    context = nova_context.RequestContext(
        'user', 'project', auth_token=SECRETS['token'], overwrite=True)
    auth = mock.Mock()
    auth.get_headers.return_value = {'X-Service-Token': SECRETS['servicetoken']}
    monkeypatch.setattr('nova.image.glance._session_and_auth', lambda c: (mock.Mock(), auth))
    monkeypatch.setattr(berth.configdrive.configdrive, 'required_by', lambda instance: True)
    monkeypatch.setattr(
        berth.configdrive.base, 'InstanceMetadata',
        lambda instance, content, network_info, extra_md: mock.Mock(
            metadata_for_config_drive=lambda: [
                ('openstack/latest/user_data', SECRETS['userdata'].encode()),
                ('openstack/latest/meta_data.json', json.dumps(extra_md).encode())]))
    monkeypatch.setattr(objects.Instance, 'get_network_info', lambda self: [make_vif()])
    monkeypatch.setattr(berth.compute_api, 'API', mock.Mock)

    def instance(**values):
        return make_instance(**{**dict(
            config_drive='True', host=CONF.host,
            user_data=base64.b64encode(SECRETS['userdata'].encode()).decode(),
            metadata={'berth:env:PASSWORD': SECRETS['environment']},
            system_metadata={'image_berth:env:KEY': SECRETS['property']}), **values})
    return context, instance


FILES = [('/etc/secret', SECRETS['file'])]


def steps(driver, context, instance):
    """(name, call) of every method that Nova calls, in an order that lets most succeed."""
    vifs = [make_vif()]
    other = make_vif(port=IMAGE, mac='fa:16:3e:00:00:02')
    resizing = lambda: instance(task_state=task_states.RESIZE_MIGRATING)  # noqa: E731
    spawning = lambda: driver.spawn(  # noqa: E731
        context, instance(), META, FILES, SECRETS['adminpass'], {}, vifs)
    tree = provider_tree.ProviderTree()
    tree.new_root('compute1', UUID, generation=0)
    yield 'rebuild', lambda: driver.rebuild(
        context, instance(), META, FILES, SECRETS['rebuildpass'], {}, [], None, None, vifs)
    yield 'spawn', spawning
    for name, arguments in [
            ('get_info', (instance(),)), ('list_instances', ()), ('list_instance_uuids', ()),
            ('get_num_instances', ()), ('instance_exists', (instance(),)),
            ('instance_on_disk', (instance(),)), ('get_available_nodes', ()),
            ('get_available_resource', ('compute1',)), ('update_provider_tree', (tree, 'compute1')),
            ('get_volume_connector', (instance(),)), ('get_host_ip_addr', ()),
            ('default_root_device_name', (instance(), META, None)),
            ('get_host_uptime', ()), ('get_host_cpu_stats', ()),
            ('process_instances_at_startup', (context, [])),
            ('set_admin_password', (instance(), SECRETS['newpass'])),
            ('pause', (instance(),)), ('unpause', (instance(),)), ('suspend', (context, instance())),
            ('resume', (context, instance(), vifs)), ('reboot', (context, instance(), vifs, 'SOFT')),
            ('reboot', (context, instance(), vifs, 'HARD')), ('power_off', (instance(), 1)),
            ('power_on', (context, instance(), vifs)), ('plug_vifs', (instance(), vifs)),
            ('attach_interface', (context, instance(), META, other)),
            ('inject_network_info', (instance(), vifs)),
            ('detach_interface', (context, instance(), other)),
            ('unplug_vifs', (instance(), vifs)), ('get_console_output', (context, instance())),
            ('get_serial_console', (context, instance())), ('get_vnc_console', (context, instance())),
            ('get_diagnostics', (instance(),)), ('get_instance_diagnostics', (instance(),)),
            ('quiesce', (context, instance(), META)), ('unquiesce', (context, instance(), META)),
            ('trigger_crash_dump', (instance(),)), ('cache_image', (context, IMAGE)),
            ('snapshot', (context, instance(), IMAGE, mock.Mock())),
            ('resume_state_on_host_boot', (context, instance(), vifs, None)),
            ('poll_rebooting_instances', (60, [instance()])),
            ('power_off', (instance(),)),
            ('rescue', (context, instance(vm_state=vm_states.RESCUED), vifs, META,
                        SECRETS['rescuepass'], None, None)),
            ('unrescue', (context, instance())),
            ('migrate_disk_and_power_off', (
                context, resizing(), CONF.my_ip, make_flavor(memory_mb=1024), vifs)),
            ('finish_migration', (context, None, resizing(), '', vifs, META, True, {})),
            ('confirm_migration', (context, None, instance(), vifs)),
            ('finish_revert_migration', (context, resizing(), vifs, None)),
            ('check_instance_shared_storage_local', (
                context, instance(task_state=task_states.RESIZE_REVERTING))),
            ('check_instance_shared_storage_remote', (context, {'host': CONF.host})),
            ('check_can_live_migrate_destination', (context, instance(), {}, {})),
            ('check_can_live_migrate_source', (context, instance(), {})),
            ('cleanup_live_migration_destination_check', (context, {})),
            ('destroy', (context, instance(), vifs)), ('cleanup', (context, instance(), vifs)),
            ('delete_instance_files', (instance(),)),
            ('cleanup_lingering_instance_resources', (instance(),)),
            ('manage_image_cache', (context, [])), ('init_host', ('compute1',)),
            ('cleanup_host', ('compute1',))]:
        yield name, lambda name=name, arguments=arguments: getattr(driver, name)(*arguments)


def run(driver, context, instance):
    """Runs them all; their names, and what they failed by."""
    names, errors = [], []
    for name, step in steps(driver, context, instance):
        names.append(name)
        try:
            step()
        except (exception.NovaException, NotImplementedError) as error:
            logging.getLogger('nova.compute.manager').exception('%s failed', name)
            errors.append('%s: %s' % (name, error))
    return names, errors


def assert_no_secret(text):
    for what, secret in SECRETS.items():
        assert secret not in text, what
        for coded in (base64.b64encode(secret.encode()).decode(), secret.encode().hex()):
            assert coded[:-4] not in text, what


def sent(service):
    return json.dumps([[m, p, b] for m, p, b, _ in service.requests])


def test_no_method_logs_a_secret(driver, service, secretive, said, told):
    for verb in ('snapshot', 'password', 'quiesce', 'unquiesce', 'dump'):
        service.extra[('POST', '.*/' + verb)] = None
    names, errors = run(driver, *secretive)
    assert {error.split(':')[0] for error in errors} == {
        'rebuild', 'get_volume_connector', 'check_can_live_migrate_destination',
        'check_can_live_migrate_source'}
    # It would prove nothing of secrets that were never there.
    bodies = sent(service)
    for what in ('newpass', 'token', 'servicetoken', 'environment', 'property', 'rescuepass'):
        assert SECRETS[what] in bodies, what
    for what in ('file', 'userdata'):
        assert base64.b64encode(SECRETS[what].encode()).decode() in bodies, what
    assert len(said()) > 500
    assert_no_secret(said() + '\n'.join(errors) + repr(told))
    # Nor did a method of the driver's stay away.
    public = {name for name, value in vars(berth.BerthDriver).items()
              if inspect.isfunction(value) and not name.startswith('_')}
    assert public - set(names) == set()


@pytest.mark.parametrize('how', ['fault', 'no answer', 'away', 'slow'])
def test_nor_does_one_that_fails(driver, service, secretive, said, told, how, monkeypatch):
    """Whatever the service answers: the exception, the traceback, the event, the log."""
    CONF.set_override('retry_timeout', 0, group='berth')
    CONF.set_override('start_timeout', 0, group='berth')
    if how == 'away':
        service.stop()
    elif how == 'slow':
        service.slow = True
    else:
        answer = service.answer

        def failing(method, url, body):
            if method == 'GET':
                return answer(method, url, body)
            if how == 'fault':
                raise Fault('internal', 'what the service says')
            raise OSError('the connection breaks')
        service.answer = failing
    _, errors = run(driver, *secretive)
    assert how == 'slow' or len(errors) > 5
    # Also where nothing fails, all of it was logged.
    assert len(said()) > 500
    assert_no_secret(said() + '\n'.join(errors) + repr(told))


def test_the_capture_would_see_one(said):
    logging.getLogger('nova.virt.berth.client').debug('body: %s', {'token': SECRETS['token']})
    with pytest.raises(AssertionError, match='token'):
        assert_no_secret(said())
