"""What flavors and images ask for: honoured, harmless, or refused before anything is made.

`asked.yaml` is the table, of every name that Nova knows. What Nova knows nothing of
promises nothing. A refusal ends a build: no other host of berth's would do better.
"""

import collections
import functools
import os
import re

from oslo_utils import strutils
import yaml

from nova import exception
from nova.virt import hardware

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'asked.yaml')
HONOURED, HARMLESS, REFUSED = 'honoured', 'harmless', 'refused'

# What Nova puts for the parts of a name in braces.
PARTS = {'group': '[a-zA-Z0-9_-]{0,64}', 'num': r'\d+'}
CPU_RESOURCE = re.compile('resources[a-zA-Z0-9_-]{0,64}:(VCPU|PCPU)')


class Row(collections.namedtuple('Row', 'name verdict words unless refused refusal')):
    """A name, what comes of it, and of which of its values."""

    @classmethod
    def read(cls, row):
        return cls(row['name'], row['is'], row['words'], row.get('unless', []),
                   row.get('refused', []), row.get('refusal', row['words']))

    def fits(self, name):
        return re.fullmatch(self._pattern, name) is not None

    @property
    def _pattern(self):
        return _pattern(self.name)

    def refuses(self, value):
        """Whether a server that asks for `value` is not made."""
        if self.verdict == REFUSED:
            return not _is_among(value, self.unless)
        # Of several that an image asks for together, one is enough.
        asked = value if isinstance(value, list) else [value]
        return any(_is_among(each, self.refused) for each in asked)


@functools.cache
def _pattern(name):
    """The regular expression of a row's name."""
    words = re.split(r'(\{\w+\}|\*)', name)
    return ''.join('.*' if word == '*' else PARTS[word[1:-1]] if word.startswith('{')
                   else re.escape(word) for word in words)


def _is_among(value, values):
    text = str(value).strip().lower()
    return any(strutils.bool_from_string(text, default=True) is False if known is False
               else text == str(known).lower() for known in values)


@functools.cache
def rows(kind):
    """The table's rows of `extra_specs` or `image_properties`."""
    with open(TABLE, encoding='utf-8') as file:
        return [Row.read(row) for row in yaml.safe_load(file)[kind]]


def row_for(kind, name):
    """The row of a name; None where Nova knows no such name."""
    return next((row for row in rows(kind) if row.fits(name)), None)


def check(flavor, image_meta=None):
    """Refuses what an instance would not get, with words for the user.

    :param image_meta: of the image that it is to boot; None: only the flavor counts
    """
    wanted = [('extra_specs', 'extra spec', name, value)
              for name, value in sorted((flavor.extra_specs or {}).items())]
    wanted += [('image_properties', 'image property', name, value)
               for name, value in sorted(image_properties(image_meta).items())]
    for kind, what, name, value in wanted:
        row = row_for(kind, name)
        if row and row.refuses(value):
            raise exception.InvalidInput(
                reason='%s %s=%s: %s' % (what, name, value, row.refusal))


def image_properties(image_meta):
    """Those that are set, under the names that Nova has for them."""
    if image_meta is None or not image_meta.obj_attr_is_set('properties'):
        return {}
    properties = image_meta.properties
    return {name: getattr(properties, name) for name in properties.fields
            if properties.obj_attr_is_set(name)}


def cpu_policy(flavor, image_meta=None):
    """`shared` or `dedicated`, as Nova finds it; None where nothing is said.

    Nova counts an instance's CPUs by it, wherever it is said: by the flavor, the image,
    or what the flavor asks Placement for.
    """
    for name, value in (flavor.extra_specs or {}).items():
        found = CPU_RESOURCE.fullmatch(name)
        if found and str(value).isdigit() and int(value) > 0:
            return 'dedicated' if found[1] == 'PCPU' else 'shared'
    if image_meta is None or not image_meta.obj_attr_is_set('properties'):
        return (flavor.extra_specs or {}).get('hw:cpu_policy')
    return hardware.get_cpu_policy_constraint(flavor, image_meta)
