"""What models with absolute positions share: tiles enter attention with an encoding of where they lie added to them."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from wsi_mil.aggregators.options import require_positive
from wsi_mil.aggregators.self_attention import SelfAttention, SelfAttentionParams
from wsi_mil.bags import Batch


@dataclass(frozen=True)
class AbsoluteParams(SelfAttentionParams):
    """Options of models with absolute positions."""

    unit_um: float = 256.0
    """What coordinates are divided by before they are encoded, by default the side of a tile. Published models took
    pixels as they are: 256 / 224 um on CAMELYON16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(unit_um=self.unit_um)


class AbsoluteSelfAttention(SelfAttention):
    """`SelfAttention` that knows where on the slide tiles lie; a subclass implements `encode`.

    Positions are relative to the level-0 corner of a tile's own slide, so where the tissue lies on the glass matters.
    Two slides of a patient have no common frame: their tiles are encoded as if one slide lay on the other.
    """

    uses_position = "absolute"
    Params = AbsoluteParams

    def placed(self, tiles: Float[Tensor, "bags tiles dim"], batch: Batch) -> Float[Tensor, "bags tiles dim"]:
        """Tiles as they enter attention: with where they lie added."""
        coords_um = batch.coords_um.masked_fill(~batch.mask.unsqueeze(-1), 0.0)  # padding may hold anything
        return tiles + self.encode(coords_um / self.params.unit_um).to(tiles)

    def encode(self, position: Float[Tensor, "bags tiles 2"]) -> Float[Tensor, "bags tiles dim"]:
        """Encode positions, given in units, in as many numbers as enter attention."""
        raise NotImplementedError
