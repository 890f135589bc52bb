"""What models share that classify a pooling of their tiles linearly: they can tell what each tile gave."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from wsi_mil.aggregators.base import Aggregator
from wsi_mil.aggregators.explanation import Explanation, Output, evidence_of
from wsi_mil.aggregators.pooling import Pooled
from wsi_mil.bags import Batch


class PoolingAggregator(Aggregator):
    """From tiles to one embedding, and from that to logits by a linear layer: a subclass implements `pooled`.

    The logits being linear in the embedding, and the embedding a sum of what tiles gave, each tile has its exact part
    in each logit. What a tile gave may tell of others too, where tiles were mixed before they were pooled.
    """

    classify: nn.Linear

    def pooled(self, batch: Batch) -> Pooled:
        """The embedding of each bag, and what each tile gave to it."""
        raise NotImplementedError

    def classifier(self) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
        """Weight and bias of the linear function from embeddings to logits."""
        return self.classify.weight, self.classify.bias

    def forward(self, batch: Batch) -> Output:
        """Logits and attention of each bag."""
        return self._output(self.pooled(batch))

    def explain(self, batch: Batch) -> Explanation:
        """What `forward` says, to the bit, and what each tile gave to it."""
        pooled, (weight, bias) = self.pooled(batch), self.classifier()
        output = self._output(pooled)
        base = evidence_of(bias).expand(output.logits.shape)
        return Explanation(output, evidence_of(output.logits), evidence_of(pooled.given(weight)), base)

    def _output(self, pooled: Pooled) -> Output:
        weight, bias = self.classifier()
        return Output(functional.linear(pooled.embedding.to(weight.dtype), weight, bias), pooled.attention)
