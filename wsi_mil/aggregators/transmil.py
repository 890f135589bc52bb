"""TransMIL (Shao et al. 2021, arXiv 2106.00908): a transformer with a class token, as published and on the real grid.

Between two layers of `NystromAttention` tiles are convolved with their neighbours, which is how the network learns
where they lie. The published one takes the order of the array for a layout; `TransMil` takes the tiles' coordinates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wsi_mil.aggregators.base import Aggregator, Output
from wsi_mil.aggregators.grid import Grid, convolve, find_cells, make_grid, typical_pitch_um
from wsi_mil.aggregators.nystrom import NystromAttention
from wsi_mil.aggregators.options import require_counts, require_fraction
from wsi_mil.bags import Batch
from wsi_mil.errors import OptionError

KERNEL_SIDES = (7, 5, 3)


@dataclass(frozen=True)
class TransMilPaperParams:
    """Options of `TransMilPaper`, shared by `TransMil`; the defaults are what was published."""

    hidden: int = 512
    """Width of a token."""
    heads: int = 8
    """Attention heads, which share that width."""
    landmarks: int = 0
    """Means of tokens that attention goes through. 0 = half of the width."""
    iterations: int = 6
    """Steps towards the inverse of the landmarks' attention."""
    dropout: float = 0.1
    """Share of what each layer of attention gives dropped in training."""

    def __post_init__(self) -> None:
        require_counts(hidden=self.hidden, heads=self.heads, iterations=self.iterations)
        object.__setattr__(self, "landmarks", self.landmarks or math.ceil(self.hidden / 2))
        require_counts(landmarks=self.landmarks)
        require_fraction(dropout=self.dropout)
        if self.hidden % self.heads:
            raise OptionError(f"hidden {self.hidden}: give a multiple of heads, {self.heads}")


@dataclass(frozen=True)
class TransMilParams(TransMilPaperParams):
    """Options of `TransMil`."""

    tile_um: float = 0.0
    """Pitch of the grid that tiles are laid on. 0 = that of each bag: the median distance to the nearest tile."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tile_um < math.inf:
            raise OptionError(f"tile_um {self.tile_um}: give a positive number, or 0 for that of each bag")


class Layout(NamedTuple):
    """The sequence that stands for a bag, and where its tokens lie."""

    order: Int[Tensor, " tokens"]
    """The tile that each token shows."""
    cells: Int[Tensor, "tokens 3"]
    """Slide, row and column of each token, each counted from 0."""


class Sequences(NamedTuple):
    """Bags of about one length: the class token and the tiles of each, zeros in front so that all end together.

    Attention starts by putting zeros in front itself, so these change nothing.
    """

    tokens: Float[Tensor, "bags tokens dim"]
    start: Int[Tensor, " bags"]
    """Where the class token is."""

    @property
    def real(self) -> Bool[Tensor, "bags tokens"]:
        """Which tokens are no filling."""
        return torch.arange(self.tokens.shape[1], device=self.start.device) >= self.start.unsqueeze(1)

    @property
    def shown(self) -> Bool[Tensor, "bags tokens"]:
        """Which tokens show tiles."""
        return torch.arange(self.tokens.shape[1], device=self.start.device) > self.start.unsqueeze(1)

    @property
    def class_token(self) -> Float[Tensor, "bags dim"]:
        """That of each bag."""
        return self.tokens[torch.arange(len(self.start), device=self.start.device), self.start]

    @classmethod
    def of(cls, bags: Sequence[Float[Tensor, "_ dim"]]) -> "Sequences":
        """Put sequences, each with its class token, side by side."""
        longest = max(map(len, bags))
        tokens = torch.stack([nn.functional.pad(bag, (0, 0, longest - len(bag), 0)) for bag in bags])
        return cls(tokens, torch.tensor([longest - len(bag) for bag in bags], device=tokens.device))


class TransMilPaper(Aggregator):
    """TransMIL as published: projection, attention, convolution over a square, attention, class token, classifier.

    The square has the side ``ceil(sqrt(tiles))`` and is filled row by row **in the order of the array**, then with
    copies of the first tiles. So what counts as a neighbour, and the answer, depend on how the array is sorted, and
    coordinates are ignored. It exists to check published figures; use `TransMil` otherwise. Features are taken as they
    are, not standardised.

    As released, the bags of a batch would change each other's pseudo-inverse; here they do not.

    ``Output.attention``: what the class token would pay to each tile in the last layer if attention were exact and
    to tiles alone, mean over heads; copies count for their tile. Tokens have been mixed by then, and the class token
    also gets values directly, of the first 16 tokens, by the value residual: it tells where the network looks, not all
    that it used.
    """

    uses_position = "none"
    ordered = True
    standardises = False
    Params = TransMilPaperParams

    def __init__(self, dim: int, classes: int, params: TransMilPaperParams):
        super().__init__(dim, classes, params)
        self.project = nn.Sequential(nn.Linear(dim, params.hidden), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(params.hidden))
        self.first, self.last = Layer(params), Layer(params)
        self.encode = PositionEncoding(params.hidden)
        self.norm = nn.LayerNorm(params.hidden)
        self.classify = nn.Linear(params.hidden, classes)

    def forward(self, batch: Batch) -> Output:
        """Logits and attention of each bag."""
        features, slide = self.standardise(batch), batch.slide
        if slide is None:
            slide = torch.zeros_like(batch.mask, dtype=torch.long)
        parts = zip(features, batch.coords_um, slide, batch.mask, strict=True)
        layouts = [self.lay_out(*(part[mask] for part in one)) for *one, mask in parts]
        projected = self.project(features)
        tiles = [bag[mask][layout.order] for bag, mask, layout in zip(projected, batch.mask, layouts, strict=True)]
        groups = self._alike(layouts)
        answers = [self._answer([tiles[bag] for bag in group], [layouts[bag] for bag in group]) for group in groups]
        logits, shares = (torch.cat(part) for part in zip(*answers, strict=True))
        bags = [bag for group in groups for bag in group]
        place = torch.cat([batch.mask[bag].nonzero()[layouts[bag].order, 0] + bag * features.shape[1] for bag in bags])
        attention = shares.new_zeros(batch.mask.numel()).index_add(0, place, shares).view_as(batch.mask)
        back = torch.tensor(bags, device=logits.device).argsort()
        return Output(logits[back], attention)

    def lay_out(
        self, features: Float[Tensor, "tiles dim"], coords_um: Float[Tensor, "tiles 2"], slide: Int[Tensor, " tiles"]
    ) -> Layout:
        """Put the tiles of a bag in sequence and on a grid."""
        tiles = len(features)
        side = math.isqrt(tiles - 1) + 1
        place = torch.arange(side * side, device=features.device)
        cells = torch.stack([torch.zeros_like(place), place // side, place % side], dim=1)
        return Layout(place % tiles, cells)

    def _alike(self, layouts: Sequence[Layout]) -> list[list[int]]:
        """Bags whose sequences attention fills up to one length; zeros in front of those change nothing."""
        groups: dict[int, list[int]] = {}
        for bag, layout in enumerate(layouts):
            groups.setdefault(len(layout.order) // self.params.landmarks, []).append(bag)
        return list(groups.values())

    def _answer(
        self, tiles: Sequence[Float[Tensor, "_ dim"]], layouts: Sequence[Layout]
    ) -> tuple[Float[Tensor, "bags classes"], Float[Tensor, " tokens"]]:
        """Logits of bags that are alike, and the attention of all their tokens, bag by bag."""
        sequences = Sequences.of([torch.cat([self.class_token.unsqueeze(0), bag]) for bag in tiles])
        tokens, shown = self.first(sequences), sequences.shown
        encoded = self.encode(tokens[shown], make_grid(_side_by_side(layouts), max(KERNEL_SIDES)))
        sequences = sequences._replace(tokens=tokens.masked_scatter(shown.unsqueeze(-1), encoded))
        shares = self.last.class_attention(sequences)[shown]
        answer = sequences._replace(tokens=self.last(sequences)).class_token
        return self.classify(self.norm(answer)), shares


class TransMil(TransMilPaper):
    """`TransMilPaper` on the real layout: the convolution sees the neighbours that a tile has on the slide.

    Tiles are laid on a grid of pitch ``tile_um``, a grid for each slide that starts at its first row and column. Empty
    cells are zeros and there are no copies. Tiles in one cell enter the convolution as their mean, and each gets what
    comes out. A shift of the slide changes nothing; turning or mirroring it does: a kernel knows left from right.

    Landmarks and the value residual need a sequence: it runs by slide (that of the most tiles first, equal ones by what
    they show), row and column, so neither the order of the array nor the numbers of the slides matter. Features are
    standardised.

    ``Output.attention`` is that of `TransMilPaper`.
    """

    uses_position = "oriented"
    ordered = False
    standardises = True
    Params = TransMilParams

    def lay_out(
        self, features: Float[Tensor, "tiles dim"], coords_um: Float[Tensor, "tiles 2"], slide: Int[Tensor, " tiles"]
    ) -> Layout:
        """Put the tiles of a bag in sequence and on a grid."""
        # Tiles of one place are told apart by a number that hardly ever is the same for different features.
        content = features.detach() @ torch.arange(1.0, self.dim + 1).sqrt().to(features)
        slide = _ranked(slide, content)
        cells = find_cells(coords_um, slide, self.params.tile_um or typical_pitch_um(coords_um, slide))
        order = _sorted_by(*cells.unbind(dim=1), *coords_um.unbind(dim=1), content)
        return Layout(order, cells[order])


class Layer(nn.Module):
    """Attention on normalised tokens, added to them."""

    def __init__(self, params: TransMilPaperParams):
        super().__init__()
        self.norm = nn.LayerNorm(params.hidden)
        self.attend = NystromAttention(params.hidden, params.heads, params.landmarks, params.iterations, params.dropout)

    def forward(self, sequences: Sequences) -> Float[Tensor, "bags tokens dim"]:
        """Tokens and what they attend to; what stands in front means nothing."""
        normalised = self.norm(sequences.tokens) * sequences.real.unsqueeze(-1)
        return sequences.tokens + self.attend(normalised)

    def class_attention(self, sequences: Sequences) -> Float[Tensor, "bags tokens"]:
        """Exact attention of the class token to the tiles; see `NystromAttention`."""
        token, tokens = self.norm(sequences.class_token), self.norm(sequences.tokens)
        return self.attend.exact_attention(token, tokens, sequences.shown)


class PositionEncoding(nn.Module):
    """Depthwise convolutions of three sizes over the grid, added to the tiles (the paper's PPEG)."""

    def __init__(self, dim: int):
        super().__init__()
        # Never called: they hold the weights, which start as a convolution's do.
        self.convolutions = nn.ModuleList(nn.Conv2d(dim, dim, side, groups=dim) for side in KERNEL_SIDES)

    def forward(self, tiles: Float[Tensor, "tiles dim"], grid: Grid) -> Float[Tensor, "tiles dim"]:
        """Tiles that know their neighbours."""
        kernel, bias = self._kernel()
        return tiles + (convolve(grid.mean(tiles), kernel, grid) + bias)[grid.cell]

    def _kernel(self) -> tuple[Float[Tensor, "dim side side"], Float[Tensor, " dim"]]:
        """One kernel that does what the three do together, and its bias."""
        largest = max(KERNEL_SIDES)
        kernels = [conv.get_parameter("weight").squeeze(1) for conv in self.convolutions]
        centred = [nn.functional.pad(kernel, [(largest - kernel.shape[-1]) // 2] * 4) for kernel in kernels]
        biases: list[Tensor] = [conv.get_parameter("bias") for conv in self.convolutions]
        return torch.stack(centred).sum(dim=0), torch.stack(biases).sum(dim=0)


def _side_by_side(layouts: Sequence[Layout]) -> Int[Tensor, "tokens 3"]:
    """The cells of several bags, the slides of each numbered after those of the one before."""
    cells, first = [], 0
    for layout in layouts:
        cells.append(layout.cells + layout.cells.new_tensor([first, 0, 0]))
        first += int(layout.cells[:, 0].max()) + 1
    return torch.cat(cells)


def _ranked(slide: Int[Tensor, " tiles"], content: Float[Tensor, " tiles"]) -> Int[Tensor, " tiles"]:
    """Number slides by what they are: from most to fewest tiles, equal ones by the sum of their content."""
    _, slide, tiles = slide.unique(return_inverse=True, return_counts=True)
    # In double precision, so that the order in which tiles are summed up decides nothing.
    total = torch.zeros(len(tiles), dtype=torch.double, device=slide.device).index_add(0, slide, content.double())
    return _sorted_by(-tiles, total).argsort()[slide]


def _sorted_by(*keys: Tensor) -> Int[Tensor, " tiles"]:
    """Order of the tiles by the first key, ties by the next."""
    order = keys[-1].argsort(stable=True)
    for key in reversed(keys[:-1]):
        order = order[key[order].argsort(stable=True)]
    return order
