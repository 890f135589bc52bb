"""Tiles of a whole cohort through encoders, as one stream of full batches.

Who does what, each in threads of its own:

* `opening`: the next slides are opened, in the order of the cohort, while earlier ones are still being read.
* `reading`: threads read tiles into batches, some ahead of the encoder. A batch may hold tiles of several slides.
* `stream`: one thread gives batches to the encoders (`wsi_mil.encoders.Feeder`) and returns rows to their slides. The
  caller gets each slide the moment that its last tile has returned, and may take its time to write it.

**Every batch has the same shape**, the last one too: it is filled up with rows that nobody reads. So a tile's features
depend neither on its row nor on its neighbours, which is more than float32 arithmetic promises between batches of
different shapes (`docs/decisions.md`): what else is in the cohort, and what was done before, changes no byte.

Memory is bounded by batches and by slides that are open, whatever the size of a slide, and however many there are.
"""

from wsi_mil.streaming.stream import Pace, stream
from wsi_mil.streaming.telling import Told
from wsi_mil.streaming.works import Column, Source, Tiles, Work

__all__ = ["Column", "Pace", "Source", "Tiles", "Told", "Work", "stream"]
