"""The bags of other programs (TRIDENT, CLAM, STAMP, AtlasPatch): read, converted to artifacts of ours, and written.

One file per program says what its files look like. `own_bags` is what ``--bags`` goes through: it converts what is not
ours, so nothing above this package knows of other programs.
"""

from wsi_mil.interop.bag import APPROXIMATE, OF_TILES, PeerBag
from wsi_mil.interop.detection import Kind, kind_of, read_peer
from wsi_mil.interop.discovery import holds_own
from wsi_mil.interop.exporting import ExportParams, export_bags
from wsi_mil.interop.importing import OwnBags, import_bags, own_bags
from wsi_mil.interop.telling import PeerOptions
from wsi_mil.interop.trident import encoders_of

__all__ = [
    "APPROXIMATE",
    "OF_TILES",
    "ExportParams",
    "Kind",
    "OwnBags",
    "PeerBag",
    "PeerOptions",
    "encoders_of",
    "export_bags",
    "holds_own",
    "import_bags",
    "kind_of",
    "own_bags",
    "read_peer",
]
