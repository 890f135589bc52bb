"""Every error that wsi_mil raises on purpose.

WsiMilError
├── OptionError             an option's value makes no sense: names the option
├── SlideError              a slide cannot be used
│   ├── SlideUnreadable     it cannot be opened, or its pixels cannot be read
│   │   └── SlideDamaged    what it says of itself cannot be, whoever reads it
│   ├── RemoteError         it lies far away and cannot be had: not there, forbidden, no network, no room in the cache
│   └── ResolutionError     its micrometres per pixel are unknown, nonsense, or too coarse
├── TableError              labels.csv or slides.csv says something that cannot be meant
├── PolygonError            a file of regions or annotations cannot be read, or does not fit its slide
├── WeightsError            a weight file is missing, not what it claims, or does not fit
├── EncoderError            unknown encoder, or one that returned unusable features
├── ArtifactError           a file of an earlier stage
│   ├── ArtifactMissing     is not there: names the command that makes it
│   ├── ArtifactCorrupt     is damaged: its checksum or layout is wrong
│   └── ArtifactStale       was made from something else, or with other options
├── StorageError            a file cannot be written: no room, or it is not allowed
├── ClusterError            the Dask cluster, or one of its workers, cannot do the work
├── TrainingError           training cannot go on
├── RankLost                a process that shared a training is gone
└── IncompatibleError       two things that do not belong together (features and checkpoint)

A message says what is wrong, where, and what to type next, on one line. Catch the base class to catch them all::

    try:
        predict(...)
    except WsiMilError as error:
        print(error)
"""


class WsiMilError(Exception):
    """The base of every error raised on purpose. ``exit_code`` is what the command line leaves with."""

    exit_code = 1


class OptionError(WsiMilError):
    """An option's value makes no sense."""

    exit_code = 2


class SlideError(WsiMilError):
    """A slide cannot be used."""


class SlideUnreadable(SlideError):
    """A slide cannot be opened, or its pixels cannot be read."""


class SlideDamaged(SlideUnreadable):
    """What a slide says of itself cannot be, whoever reads it."""


class RemoteError(SlideError):
    """A slide lies far away and cannot be had. What servers said is told without keys and signatures."""

    is_missing = False
    """Whether the server says that nothing is there."""


class ResolutionError(SlideError):
    """The micrometres per pixel of a slide are unknown, nonsense, or too coarse for what was asked."""

    told: tuple[float, float, str] | None = None
    """What was nonsense: x, y, and who said it; None where nobody did."""


class TableError(WsiMilError):
    """A table says something that cannot be meant."""


class PolygonError(WsiMilError):
    """A file of regions or annotations cannot be read, or does not fit its slide."""


class WeightsError(WsiMilError):
    """A weight file is missing, not what it claims to be, or does not fit the model."""


class EncoderError(WsiMilError):
    """The encoder is unknown, or returned unusable features."""


class ArtifactError(WsiMilError):
    """Something is wrong with a file of an earlier stage."""


class ArtifactMissing(ArtifactError):
    """The artifact is not there."""


class ArtifactCorrupt(ArtifactError):
    """The artifact is damaged."""


class ArtifactStale(ArtifactError):
    """The artifact was made from another input or with other options."""


class StorageError(WsiMilError):
    """A file cannot be written: there is no room, or it is not allowed."""


class ClusterError(WsiMilError):
    """The cluster cannot be reached, or a worker cannot do the work: another version, a folder that it does not see."""


class TrainingError(WsiMilError):
    """Training cannot go on, such as when the loss is not finite."""


class RankLost(WsiMilError):
    """A process that shared a training with this one is gone: killed, or failed on its own."""


class IncompatibleError(WsiMilError):
    """Two things do not belong together, such as features and a checkpoint of another encoder."""


def one_line(error: BaseException) -> str:
    """Return an error as one line: our own message as it stands, a foreign one with its type before it."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: permission denied: allow it, then type the same command again"
    return text if isinstance(error, WsiMilError) else f"{type(error).__name__}: {text}"
