"""Nova loads the driver: from a wheel and in an editable Nova, on both backends."""

import glob
import os
import subprocess
import sys
import sysconfig

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = os.path.dirname(HERE)
LOAD = '''
from nova import conf
from nova.virt import driver
CONF = conf.CONF
CONF([], project='nova', default_config_files=[], default_config_dirs=[])
for name in ('berth.BerthDriver', 'berth.driver.BerthDriver'):
    made = driver.load_compute_driver(None, name)
    print(type(made).__module__, CONF.berth.url)
import nova.virt.berth, nova.virt.berth.driver, sys
assert nova.virt.berth.BerthDriver is nova.virt.berth.driver.BerthDriver is type(made)
assert not [name for name in sys.modules if name.startswith('berth_nova.virt')]
'''


def run(python, *args, **environment):
    done = subprocess.run(
        [python, '-W', 'ignore', *args], capture_output=True, text=True,
        env={**os.environ, **environment}, cwd='/')
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The built wheel; without hatchling there is nothing to test."""
    pytest.importorskip('hatchling')
    place = str(tmp_path_factory.mktemp('wheel'))
    subprocess.run([sys.executable, '-m', 'hatchling', 'build', '-t', 'wheel', '-d', place],
                   cwd=PROJECT, check=True, capture_output=True)
    [path] = glob.glob(os.path.join(place, '*.whl'))
    return path


def environment(directory, site_packages, wheel):
    """A virtual environment with the wheel, over another one's packages."""
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', directory], check=True)
    python = os.path.join(directory, 'bin', 'python')
    [place] = glob.glob(os.path.join(directory, 'lib', 'python*', 'site-packages'))
    # A line of a .pth adds a directory; the .pth files in that one stay unread.
    with open(os.path.join(place, 'others.pth'), 'w') as file:
        file.write(site_packages + '\n')
    subprocess.run(
        [sys.executable, '-m', 'pip', '-q', '--python', python, 'install', '--no-deps',
         '--no-index', wheel], check=True)
    return python, place


def test_with_nova_from_a_wheel(tmp_path, wheel):
    python, place = environment(str(tmp_path / 'v'), sysconfig.get_path('purelib'), wheel)
    assert sorted(n for n in os.listdir(place) if n != '__pycache__') == [
        'berth_nova', 'berth_nova-0.1.0.dist-info', 'berth_nova.pth', 'others.pth']
    assert run(python, '-c', LOAD).split() == [
        'nova.virt.berth.driver', 'unix:///run/berth/berth.sock'] * 2
    assert 'berth_nova' not in run(python, '-c', 'import nova; print(nova.__path__)')


def test_with_an_editable_nova(tmp_path, wheel):
    """As `pip install -e` makes it: the same finder, at the end of sys.meta_path."""
    editable_wheel = pytest.importorskip('setuptools.command.editable_wheel')
    import nova
    others = tmp_path / 'others'
    others.mkdir()
    for name in os.listdir(sysconfig.get_path('purelib')):
        if name != 'nova' and not name.endswith(('.pth', '.egg-link')):
            os.symlink(os.path.join(sysconfig.get_path('purelib'), name), others / name)
    source = tmp_path / 'src'
    source.mkdir()
    os.symlink(nova.__path__[0], source / 'nova')
    python, place = environment(str(tmp_path / 'v'), str(others), wheel)
    name = '__editable___nova_finder'
    with open(os.path.join(place, name + '.py'), 'w') as file:
        file.write(editable_wheel._finder_template(
            '__editable__.nova.finder', {'nova': str(source / 'nova')}, {}))
    with open(os.path.join(place, '__editable__.nova.pth'), 'w') as file:
        file.write('import %s; %s.install()\n' % (name, name))
    assert str(source) in run(python, '-c', 'import nova; print(nova.__path__)')
    assert run(python, '-c', LOAD).split()[0] == 'nova.virt.berth.driver'


def test_the_hook_imports_nothing_of_nova():
    out = run(sys.executable, '-c', 'import sys; print("nova" in sys.modules, '
              '"oslo_config" in sys.modules, sum(f.__name__ == "BerthFinder" '
              'for f in sys.meta_path if isinstance(f, type)))')
    assert out.split() == ['False', 'False', '1']


def test_oslo_configs_tools_list_the_options():
    out = run(sys.executable, '-m', 'oslo_config.generator', '--namespace', 'berth')
    from nova.virt.berth import conf
    assert '[berth]' in out
    for option in conf.OPTIONS:
        assert '#%s = ' % option.dest in out and option.help


@pytest.mark.parametrize('backend', ['threading', 'eventlet'])
def test_the_suite_on_a_backend(backend):
    """All that talks, on the backend that this run does not use."""
    from nova import monkey_patch
    if os.environ.get('BERTH_TEST_BACKEND'):
        pytest.skip('this is that run')
    eventlet = sys.modules.get('eventlet')
    patched = eventlet and eventlet.patcher.is_monkey_patched('thread')
    running = 'eventlet' if patched else 'threading'
    if backend == running:
        pytest.skip('this very run is on %s' % backend)
    if backend == 'threading' and not hasattr(monkey_patch, 'poison_eventlet'):
        pytest.skip('this Nova has no native threads')
    run(sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', '-c',
        os.path.join(PROJECT, 'pyproject.toml'), '--rootdir', PROJECT,
        *[os.path.join(HERE, 'test_%s.py' % name) for name in ('client', 'driver', 'events', 'resize')],
        BERTH_TEST_BACKEND=backend)
