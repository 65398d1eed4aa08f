"""What flavors and images ask for: Nova's own lists, against the driver's table."""

import itertools
import os
import re
import subprocess
import sys

import pytest
from conftest import CONF, IMAGE, UUID, make_flavor, make_instance, make_vif
from nova import exception
from nova import objects
from nova.api.validation.extra_specs import validators
from nova.compute import task_states
from nova.objects import image_meta as image_objects
from nova.virt.berth import asked
from oslo_versionedobjects import fields

PATH = '/v1/instances/%s' % UUID
# What Nova longest shows of a fault, and puts before the driver's words.
FAULT = 255
# For the parts of names, and for values of which Nova says only a pattern.
PARTS = {'group': '_1', 'num': '0', 'key': 'rack', 'filter': '', 'resource': 'GOLD',
         'trait': 'CUSTOM_GOLD'}
VALUES = {
    'hw:mem_page_size': ['large', 'small', 'any', '2MB', '1GB', '2048'], 'hw:pmem': ['4GB'],
    'hw:numa_cpus.0': ['0-1'], 'hw:cpu_dedicated_mask': ['^0'],
    'hw:cpu_realtime_mask': ['^0'], 'pci_passthrough:alias': ['gpu:1'],
    'hw_mem_page_size': ['large', 'small', 'any', '2MB'],
    'traits_required': [['HW_CPU_X86_AVX2'], ['HW_CPU_HYPERTHREADING']],
    'img_hv_requested_version': ['>=1.0'], 'hw_architecture': ['x86_64'],
}


def extra_specs():
    """(name, value) of everything that Nova's API lets a flavor say."""
    for name, validator in sorted(validators.VALIDATORS.items()):
        name = re.sub(r'\{(\w+)\}', lambda found: PARTS[found[1]], name)
        for value in VALUES.get(name) or _values(validator.value):
            yield name, value


def _values(told):
    if told['type'] is bool:
        return ['true', 'false', 'yes', '0']
    if told['type'] is int:
        return [str(max(told.get('min', 0), value)) for value in (0, 2)]
    return [str(value) for value in told.get('enum', ['x'])]


def image_properties():
    """(name, value) of everything that Nova reads of an image."""
    for name, field in sorted(image_objects.ImageMetaProps.fields.items()):
        if name in VALUES:
            values = VALUES[name]
        elif hasattr(field, 'valid_values'):
            values = field.valid_values
        elif isinstance(field, fields.FlexibleBooleanField):
            values = ['yes', 'no']
        elif isinstance(field, fields.IntegerField):
            values = [2]
        elif isinstance(field, fields.UUIDField):
            values = [UUID]
        elif name == 'hw_numa_mem':
            values = [[256, 256]]
        elif name == 'hw_numa_cpus':
            values = [[{0}, {1}]]
        elif isinstance(field, fields.BaseEnumField):
            values = field.valid_values
        else:
            values = [[]] if 'List' in type(field).__name__ else ['x']
        for value in values:
            yield name, value


SPECS = sorted(set(extra_specs()))
PROPERTIES = list(image_properties())
# Names that a Nova before the newest, or its API, does not know.
NOT_EVERYWHERE = {
    'hw:mem_encryption_model', 'hw:redirected_usb_ports', 'hw:sound_model', 'hw:usb_model',
    'hw:tpm_secret_security', 'hw:maxphysaddr_mode', 'hw:maxphysaddr_bits',
    'hw_mem_encryption_model', 'hw_redirected_usb_ports', 'hw_sound_model', 'hw_usb_model'}


def row(kind, name):
    found = asked.row_for(kind, name)
    assert found, '%s is in no row of asked.yaml' % name
    return found


def meta(**properties):
    return objects.ImageMeta(id=IMAGE, properties=objects.ImageMetaProps(**properties))


def spawn(driver, context, flavor, image):
    driver.spawn(context, make_instance(flavor=flavor), image, [], None, {}, [make_vif()])


def test_novas_lists_are_there():
    """They are enumerated from Nova: an empty list would prove nothing."""
    assert len({name for name, _ in SPECS}) > 400
    assert len({name for name, _ in PROPERTIES}) > 70


@pytest.mark.parametrize('kind,names', [
    ('extra_specs', SPECS), ('image_properties', PROPERTIES)])
def test_every_row_is_of_a_name_that_nova_knows_and_says_why(kind, names):
    names = {name for name, _ in names}
    fitting = {asked.row_for(kind, name) and asked.row_for(kind, name).name for name in names}
    rows = asked.rows(kind)
    assert {r.name for r in rows} - fitting <= NOT_EVERYWHERE
    assert len({r.name for r in rows}) == len(rows)
    for r in rows:
        assert r.verdict in (asked.HONOURED, asked.HARMLESS, asked.REFUSED)
        assert r.words and not r.words.endswith('.')
        assert not (r.unless and r.verdict != asked.REFUSED)
        assert not (r.refused and r.verdict == asked.REFUSED)


@pytest.mark.parametrize('kind,name', sorted(
    {('extra_specs', name) for name, _ in SPECS if not name.startswith('trait')} |
    {('image_properties', name) for name, _ in PROPERTIES}))
def test_each_is_made_or_refused_with_its_words(driver, context, service, kind, name):
    """Spawn for every value that Nova has for it, and resize for a flavor's."""
    found = row(kind, name)
    values = [value for known, value in (SPECS if kind == 'extra_specs' else PROPERTIES)
             if known == name]
    outcomes = set()
    for value in values:
        service.instances.clear()
        said = {name: value}
        flavor = make_flavor(extra_specs=said if kind == 'extra_specs' else {})
        image = meta(**said) if kind == 'image_properties' else meta()
        refused = found.refuses(image_value(image, name, value))
        outcomes.add(refused)
        if refused:
            with pytest.raises(exception.InvalidInput) as error:
                spawn(driver, context, flavor, image)
            assert found.refusal in str(error.value) and name in str(error.value)
            aborted = exception.BuildAbortException(
                instance_uuid=UUID, reason=error.value.format_message())
            assert len(aborted.format_message()) <= FAULT
            assert service.instances == {} and service.images == {}
        else:
            spawn(driver, context, flavor, image)
            assert service.instances[UUID]['power_state'] == 'RUNNING'
        if kind == 'extra_specs':
            check_resize(driver, context, service, flavor, refused, found)
        service.images.clear()
    # The verdict that the documents show is that of some value at least.
    assert (found.verdict == asked.REFUSED) in outcomes


def image_value(image, name, value):
    properties = image.properties
    return getattr(properties, name) if name in properties.fields else value


def check_resize(driver, context, service, flavor, refused, found):
    service.instances.clear()
    spawn(driver, context, make_flavor(), meta())
    instance = make_instance(task_state=task_states.RESIZE_MIGRATING)
    resizing = lambda: driver.migrate_disk_and_power_off(  # noqa: E731
        context, instance, CONF.my_ip, flavor, [make_vif()])
    before = len(service.changes())
    if refused:
        with pytest.raises(exception.InstanceFaultRollback) as error:
            resizing()
        assert found.refusal in str(error.value.inner_exception)
        assert service.changes()[before:] == []
    else:
        resizing()
        assert service.body('POST', PATH + '/resize')['flavor']['name'] == flavor.name


@pytest.mark.parametrize('name', sorted({name for name, _ in SPECS if name.startswith('trait')}))
def test_traits_are_placements(name):
    found = row('extra_specs', name)
    assert found.verdict == (asked.REFUSED if 'HYPERTHREADING' in name else asked.HONOURED)


@pytest.mark.parametrize('traits', [
    ['HW_CPU_HYPERTHREADING'], ['HW_CPU_X86_AVX2', 'HW_CPU_HYPERTHREADING']])
def test_a_thread_policy_is_refused_as_a_trait_of_the_image_too(driver, context, service, traits):
    with pytest.raises(exception.InvalidInput, match='thread policy'):
        spawn(driver, context, make_flavor(), meta(traits_required=traits))
    assert service.instances == {} and service.images == {}


def test_what_nova_knows_nothing_of_promises_nothing(driver, context, service):
    spawn(driver, context, make_flavor(extra_specs={'berth:processes': '100', 'mine': 'x'}), meta())
    assert UUID in service.instances


@pytest.mark.parametrize('name,value,refused', [
    ('hw:mem_page_size', 'LARGE', True), ('hw:mem_page_size', ' Any', False),
    ('hw:mem_encryption', 'True', True), ('hw:mem_encryption', 'off', False),
    ('resources:VGPU', '1', True), ('resources_GPU1:VGPU', '1', True), ('resources2:VGPU', '0', False),
    ('hw:numa_mem.12', '5', True), ('quota:cpu_reservation', '100', True)])
def test_values_are_read_as_nova_reads_them(name, value, refused):
    check = lambda: asked.check(make_flavor(extra_specs={name: value}))  # noqa: E731
    if refused:
        with pytest.raises(exception.InvalidInput):
            check()
    else:
        check()


# CPUs of its own, wherever they are asked for.

@pytest.mark.parametrize('specs,image,expected', [
    ({}, {}, None), ({'hw:cpu_policy': 'shared'}, {}, 'shared'),
    ({'hw:cpu_policy': 'dedicated'}, {}, 'dedicated'),
    ({}, {'hw_cpu_policy': 'dedicated'}, 'dedicated'),
    ({'resources:PCPU': '2'}, {}, 'dedicated'), ({'resources1:PCPU': '2'}, {}, 'dedicated'),
    ({'resources:VCPU': '2'}, {}, 'shared'), ({'resources:PCPU': '0'}, {}, None)])
def test_the_cpu_policy_is_the_one_that_nova_counts_by(
        driver, context, service, specs, image, expected):
    spawn(driver, context, make_flavor(extra_specs=specs), meta(**image))
    sent = service.body('PUT', PATH)['flavor']['extra_specs']
    assert sent.get('hw:cpu_policy') == expected
    assert {**sent, **specs} == sent


def test_a_resize_keeps_the_policy_of_the_image(driver, context, service):
    spawn(driver, context, make_flavor(), meta(hw_cpu_policy='dedicated'))
    instance = make_instance(task_state=task_states.RESIZE_MIGRATING, system_metadata={
        'image_hw_cpu_policy': 'dedicated', 'image_disk_format': 'raw'})
    driver.migrate_disk_and_power_off(
        context, instance, CONF.my_ip, make_flavor(memory_mb=1024), [make_vif()])
    sent = service.body('POST', PATH + '/resize')['flavor']['extra_specs']
    assert sent['hw:cpu_policy'] == 'dedicated'


def test_accelerators_are_refused(driver, context, service):
    with pytest.raises(exception.InvalidInput, match='accelerators'):
        driver.spawn(context, make_instance(), meta(), [], None, {}, [], accel_info=[{'uuid': 'x'}])
    assert service.requests == []


def test_the_first_row_that_fits_counts():
    """A name of its own comes before a pattern that it fits."""
    for kind in ('extra_specs', 'image_properties'):
        rows = asked.rows(kind)
        for earlier, later in itertools.combinations(rows, 2):
            plain = re.sub(r'\{(\w+)\}', lambda found: PARTS[found[1]], later.name)
            assert '*' in plain or not earlier.fits(plain), (earlier.name, later.name)


def test_the_documents_tables_are_the_drivers():
    script = os.path.join(os.path.dirname(__file__), '..', '..', 'scripts', 'features-tables')
    checked = subprocess.run([sys.executable, script, '--check'], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
