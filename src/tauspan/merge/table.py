"""`METHODS`: every merging method, by name."""

from types import MappingProxyType

from tauspan.merge import sums
from tauspan.merge.method import Method

_ROWS: tuple[Method, ...] = (sums.TASK_ARITHMETIC,)

METHODS = MappingProxyType({method.name: method for method in _ROWS})
