"""Filters: Django lookups on the metadata and ids of rows, as boolean masks over columns.

What a condition on a metadata path matches:

- A path with dots reaches into objects; a key that has the dots in it is taken too. An array, on the way or at the end,
  stands for each of its elements, arrays within arrays included: a row matches if any value matches.
- Only values of one type are compared: numbers with numbers (exactly, integers of 64 bits included), strings with
  strings (ordered by code points, which is the order of their UTF-8 bytes), booleans with booleans. A row that has no
  value of the operand's type matches no comparison, `ne` included: `ne` means that some comparable value differs. To
  get the rows without the key as well, negate `exact`.
- null is absence. `exact` with null is `isnull` true, `ne` with null is `isnull` false.
- `isnull` is false, that is, there is something, for a scalar, an object, an empty array, and an array in which
  anything, at any depth, is not null. It is true for a missing key, null, and an array of nothing but nulls.
- `in` hits an equal value of the same type; an empty list hits nothing. `range` includes both ends.
- `contains` is a substring of a string. A number or boolean is contained in an array that has an equal element; in a
  scalar nothing but text is contained. `icontains` compares casefolded text; the other text lookups compare as it is.

A condition on `id`: an id is an integer, a UUID or a string. `exact`, `ne` and `in` compare ids as a whole, so `ne`
also matches ids of other kinds; order lookups match ids of the operand's kind only; text lookups match strings and the
lower-case text of UUIDs. An id is never null.
"""

from vectors.engine.filters.budget import ColumnBudget
from vectors.engine.filters.columns import Columns
from vectors.engine.filters.evaluate import mask
from vectors.engine.filters.grammar import parse_filter
from vectors.engine.filters.reference import matches
from vectors.engine.filters.tree import Filter

__all__ = ["ColumnBudget", "Columns", "Filter", "mask", "matches", "parse_filter"]
