"""Importers of foreign offline data into the team convention."""

from core.data.importers.formats import FORMATS, Format, guess_format, import_foreign, read_foreign
from core.data.importers.hdf5 import import_hdf5
from core.data.importers.omar import import_omar
from core.data.importers.remote import download_minari
from core.data.importers.steps import Imported, ImportOptions
from core.data.importers.vault import import_vault

__all__ = [
    "FORMATS",
    "Format",
    "ImportOptions",
    "Imported",
    "download_minari",
    "guess_format",
    "import_foreign",
    "import_hdf5",
    "import_omar",
    "import_vault",
    "read_foreign",
]
