"""Makes `berth_nova/virt` importable as `nova.virt.berth`.

Nova imports its driver from below `nova.virt` and nowhere else, and
`nova.virt` is an ordinary package. Files dropped into a `nova/` directory of
another wheel work beside a wheel-installed Nova and break an editable one
whole. A finder works in both.

This runs at every start of the interpreter, before Nova patches anything:
standard library only, and nothing is imported until it is asked for.
"""

import importlib.util
import os
import sys

NAME = 'nova.virt.berth'
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'virt')


class BerthFinder:
    """A meta-path finder for `nova.virt.berth` and what is below it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == NAME:
            return importlib.util.spec_from_file_location(
                name, os.path.join(ROOT, '__init__.py'),
                submodule_search_locations=[ROOT])
        if name.startswith(NAME + '.'):
            module = name[len(NAME) + 1:]
            file = os.path.join(ROOT, *module.split('.')) + '.py'
            if os.path.isfile(file):
                return importlib.util.spec_from_file_location(name, file)
        return None


def install():
    """Adds the finder once."""
    if BerthFinder not in sys.meta_path:
        sys.meta_path.append(BerthFinder)
