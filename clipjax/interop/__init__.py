"""Importing and exporting weights of other libraries. To add a format, write a file and a row in FAMILIES.

    foreign = open_foreign("siglip-base-patch16-224")     # a local directory or file; nothing is downloaded
    variables = foreign.variables(mesh)                   # foreign.config is the configuration to use them with

`clipjax.load` does both; `clipjax import` and `clipjax export` are the commands. See docs/interop.md.
"""

from clipjax.interop.export import choose_family, write_files
from clipjax.interop.families import FAMILIES
from clipjax.interop.foreign import Foreign, open_foreign
from clipjax.interop.layouts import Layout
from clipjax.interop.names import Description, Family, InteropError, Meaning, Tensor
from clipjax.interop.parity import parity_report

__all__ = [
    "FAMILIES",
    "Description",
    "Family",
    "Foreign",
    "InteropError",
    "Layout",
    "Meaning",
    "Tensor",
    "choose_family",
    "open_foreign",
    "parity_report",
    "write_files",
]
