"""Everything that reads a file which others may have written: valid files of it, how these are damaged, what reads."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lies
import mutations
import reading
import seeds

Make = Callable[[Path], list[Path]]


@dataclass(frozen=True)
class Reader:
    """One kind of file."""

    make: Make
    """Writes valid files below a folder, and names those that are damaged; what lies beside them stays as it is."""
    read: Callable[[Path], object]
    """Everything that the product does with such a file."""
    damages: tuple[mutations.Damage, ...] = (mutations.mutate,)
    """One of these is drawn for each input."""
    lie: Callable[[random.Random, Path], None] | None = None
    """Changes a valid file in place, so that it is whole and says what cannot be meant; half of the inputs."""
    is_slow: bool = False
    """The fast slice takes fewer inputs of it."""

    def write(self, rng: random.Random, path: Path, valid: bytes, others: Sequence[bytes]) -> None:
        """Put a damaged file in the place of a valid one."""
        path.write_bytes(valid)
        if self.lie and rng.random() < 0.5:
            self.lie(rng, path)
        else:
            path.write_bytes(rng.choice(self.damages)(rng, valid, others))


_TEXT = (mutations.damaged_text,)
_TENSORS = (mutations.mutate, mutations.damaged_header, mutations.damaged_header)
_ZIPPED = (mutations.mutate, mutations.damaged_zip, mutations.damaged_zip)
_DICOM = (mutations.mutate, mutations.damaged_dicom)
_TIFF = (mutations.mutate, mutations.damaged_tiff, mutations.damaged_tiff)

READERS = {
    "features": Reader(seeds.features, reading.features, lie=lies.lie),
    "tiles": Reader(seeds.tiles, reading.folder_of_tiles, lie=lies.lie),
    "distances": Reader(seeds.distances, reading.distances_of, lie=lies.lie),
    "trident": Reader(seeds.trident, reading.peer, lie=lies.lie),
    "clam": Reader(seeds.clam, reading.peer, lie=lies.lie),
    "clam-patches": Reader(seeds.clam_patches, reading.peer_beside, lie=lies.lie),
    "clam-pt": Reader(seeds.clam_pt, reading.peer, (*_ZIPPED,)),
    "stamp": Reader(seeds.stamp, reading.peer, lie=lies.lie),
    "atlaspatch": Reader(seeds.atlaspatch, reading.peer, lie=lies.lie),
    "labels-csv": Reader(seeds.labels_csv, reading.labels, _TEXT),
    "labels-xlsx": Reader(seeds.labels_xlsx, reading.labels, _ZIPPED, is_slow=True),
    "slides-csv": Reader(seeds.slides_csv, reading.slides_table, _TEXT),
    "run-tables": Reader(seeds.run_tables, reading.run_tables, _TEXT),
    "predictions-csv": Reader(seeds.predictions, reading.predictions, _TEXT),
    "geojson": Reader(seeds.geojson, reading.drawing, _TEXT),
    "asap-xml": Reader(seeds.asap, reading.drawing, _TEXT),
    "checkpoint": Reader(seeds.checkpoints, reading.model, _TENSORS),
    "resume": Reader(seeds.resumes, reading.interrupted, _TENSORS),
    "weights-safetensors": Reader(seeds.weights_safetensors, reading.weight_file, _TENSORS),
    "weights-torch": Reader(seeds.weights_torch, reading.weight_file, _ZIPPED),
    "explanation-json": Reader(seeds.explanation, reading.explanation, _TEXT),
    "records-json": Reader(seeds.records, reading.record, _TEXT),
    "idx": Reader(seeds.idx, reading.idx),
    "tiff": Reader(seeds.tiff, reading.slide, _TIFF, is_slow=True),
    "svs": Reader(seeds.svs, reading.slide, _TIFF, is_slow=True),
    "philips": Reader(seeds.philips, reading.slide, _TIFF, is_slow=True),
    "ndpi": Reader(seeds.ndpi, reading.slide, _TIFF, is_slow=True),
    "dicom": Reader(seeds.dicom, reading.slide, _DICOM, is_slow=True),
    "mrxs-vms": Reader(seeds.several_files, reading.slide_beside, is_slow=True),
    "images": Reader(seeds.images, reading.slide, (mutations.mutate, mutations.damaged_tiff)),
}
"""By name."""
