"""What is done to names and files that others may have written, before anything believes them.

A slide_id, an artifact or a file of outlines may come from anybody. Here is the one function that turns such a name
into a place (`inside`), the one that opens a dataset of such a file (`hdf5.dataset`), and how their JSON and XML are
read. ``SECURITY.md`` says what that promises.
"""

from wsi_mil.guards.names import inside, is_formula, is_inside, printable
from wsi_mil.guards.secrets import redacted
from wsi_mil.guards.text import parse_json, parse_words, read_table_of_json, require_plain_xml

__all__ = [
    "inside",
    "is_formula",
    "is_inside",
    "parse_json",
    "parse_words",
    "printable",
    "read_table_of_json",
    "redacted",
    "require_plain_xml",
]
