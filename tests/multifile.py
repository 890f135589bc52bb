"""Slides of several files, as small as OpenSlide takes them: a DICOM series, Hamamatsu's VMS, 3DHISTECH's MRXS.

Written from OpenSlide's and DICOM's own description of them (PS3.3 A.32.8), so that the real readers read real files.
"""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

_TILE, _FACTORS = 256, (1, 2, 4)
_SLIDE_ID = "0123456789ABCDEF" * 2
_VMS = """[Virtual Microscope Specimen]
NoLayers=1
NoJpegColumns=2
NoJpegRows=1
ImageFile={0}-0-0.jpg
ImageFile(1,0)={0}-1-0.jpg
MapFile={0}_map.jpg
MacroImage={0}_macro.jpg
PhysicalWidth={1}
PhysicalHeight={2}
SourceLens=10
"""
_SLIDEDAT = """[GENERAL]
SLIDE_VERSION=01.02
SLIDE_ID={id}
IMAGENUMBER_X={columns}
IMAGENUMBER_Y={rows}
OBJECTIVE_MAGNIFICATION=10
[HIERARCHICAL]
HIER_COUNT=1
NONHIER_COUNT=0
INDEXFILE=Index.dat
HIER_0_NAME=Slide zoom level
HIER_0_COUNT=3
HIER_0_VAL_0_SECTION=LEVEL_0
HIER_0_VAL_1_SECTION=LEVEL_1
HIER_0_VAL_2_SECTION=LEVEL_2
[DATAFILE]
FILE_COUNT=1
FILE_0=Data0000.dat
"""
_LEVEL = """[LEVEL_{index}]
OVERLAP_X=0
OVERLAP_Y=0
MICROMETER_PER_PIXEL_X={mpp}
MICROMETER_PER_PIXEL_Y={mpp}
IMAGE_FORMAT=JPEG
IMAGE_FILL_COLOR_BGR=16777215
DIGITIZER_WIDTH=256
DIGITIZER_HEIGHT=256
IMAGE_CONCAT_FACTOR={concat}
"""


def write_dicom(folder: Path, image: np.ndarray, mpp: float, series: str = "1.2.3", first: int = 1) -> list[Path]:
    """A series of three levels and a label, each in a file of its own, ``<number>.dcm``; the label comes first."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [(image[:_TILE, :_TILE], mpp, "LABEL"), *((_reduced(image, by), mpp * by, "VOLUME") for by in _FACTORS)]
    paths = []
    for number, (picture, um, kind) in enumerate(pictures, first):
        made = _instance(picture, um, kind, series, number)
        paths.append(folder / f"{number:03}.dcm")
        made.save_as(paths[-1], enforce_file_format=True)
    return paths


def _instance(image: np.ndarray, mpp: float, kind: str, series: str, number: int) -> Dataset:
    frames = [_jpeg(tile) for _, _, tile in _tiles(image)]
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = f"{series}.9.{number}"
    made.SeriesInstanceUID, made.StudyInstanceUID, made.FrameOfReferenceUID = series, f"{series}.7", f"{series}.8"
    made.Modality, made.InstanceNumber = "SM", number
    made.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    made.DimensionOrganizationType = "TILED_FULL"
    made.TotalPixelMatrixRows, made.TotalPixelMatrixColumns = image.shape[:2]
    made.Rows = made.Columns = _TILE
    made.NumberOfFrames, made.NumberOfOpticalPaths, made.TotalPixelMatrixFocalPlanes = len(frames), 1, 1
    made.SamplesPerPixel, made.PlanarConfiguration, made.PixelRepresentation = 3, 0, 0
    made.PhotometricInterpretation = "YBR_FULL_422"
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    spacing, shared = Dataset(), Dataset()
    spacing.PixelSpacing = [mpp / 1000, mpp / 1000]
    shared.PixelMeasuresSequence = [spacing]
    made.SharedFunctionalGroupsSequence = [shared]
    made.PixelData = encapsulate(frames)
    return made


def write_vms(path: Path, image: np.ndarray, mpp: float) -> Path:
    """Two pictures side by side, a map and a macro picture, in JPEGs that may be entered at any row of blocks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = image.shape[:2]
    left, right, small = image[:, : width // 2], image[:, width // 2 :], _reduced(image, 8)
    for name, picture in {"-0-0": left, "-1-0": right, "_map": small, "_macro": small}.items():
        file = path.with_name(f"{path.stem}{name}.jpg")
        file.write_bytes(_jpeg(picture, subsampling=0, restart_marker_blocks=picture.shape[1] // 8))
    path.write_text(_VMS.format(path.stem, round(width * mpp * 1000), round(height * mpp * 1000)))
    return path


def write_mrxs(path: Path, image: np.ndarray, mpp: float) -> Path:
    """Three levels of JPEG tiles in one data file; the index says where each lies."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = (side // _TILE for side in image.shape[:2])
    head = b"01.02" + _SLIDE_ID.encode()
    data, table = bytearray(head), len(head) + 8
    pages, starts = b"", []
    for by in _FACTORS:
        records = []
        for x, y, tile in _tiles(_reduced(image, by)):
            jpeg = _jpeg(tile)
            records += [y * by * columns + x * by, len(data), len(jpeg), 0]
            data += jpeg
        starts.append(table + 4 * len(_FACTORS) + len(pages))
        pages += struct.pack(f"<4i{len(records)}i", 0, starts[-1] + 8, len(records) // 4, 0, *records)
    index = head + struct.pack(f"<{2 + len(starts)}i", table, 0, *starts) + pages
    levels = [_LEVEL.format(index=i, mpp=mpp * by, concat=int(i > 0)) for i, by in enumerate(_FACTORS)]
    (folder / "Index.dat").write_bytes(index)
    (folder / "Data0000.dat").write_bytes(data)
    (folder / "Slidedat.ini").write_text(_SLIDEDAT.format(id=_SLIDE_ID, columns=columns, rows=rows) + "".join(levels))
    path.write_bytes(b"")
    return path


def _reduced(image: np.ndarray, by: int) -> np.ndarray:
    return np.array(Image.fromarray(image).reduce(by))


def _tiles(image: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """Column, row and pixels of each tile, white where there is no image any more."""
    rows, columns = (-(-side // _TILE) for side in image.shape[:2])
    whole = np.full((rows * _TILE, columns * _TILE, 3), 255, np.uint8)
    whole[: image.shape[0], : image.shape[1]] = image
    tiles = whole.reshape(rows, _TILE, columns, _TILE, 3).swapaxes(1, 2)
    return [(x, y, tiles[y, x]) for y in range(rows) for x in range(columns)]


def _jpeg(image: np.ndarray, **options: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()
