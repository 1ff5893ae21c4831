"""The recall model: item tower, transformer and user tower around one loss. Both training paths run this code."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fedrecall.models.loss import sampled_softmax
from fedrecall.models.shape import ModelShape
from fedrecall.models.towers import ItemTower, UserTower
from fedrecall.models.transformer import Transformer

ITEM_ID = "item.id.weight"
"""Name of the id table [items, dim], the one shared array that is not a layer's."""


class RecallModel(nn.Module):
    """Item tower, transformer and user tower; ``forward`` is the training loss of each sample."""

    def __init__(self, shape: ModelShape) -> None:
        """Create a model of this shape from torch's current random state; see ``initial_arrays``."""
        super().__init__()
        self.shape = shape
        self.item = ItemTower(shape)
        self.transformer = Transformer(shape)
        self.user = UserTower(shape.dim, shape.user_dim, shape.user_hidden)

    def forward(
        self,
        own_rows: Float[Tensor, "batch own dim"],
        negative_rows: Float[Tensor, "#batch negatives dim"],
        own_features: Float[Tensor, "batch own features"] | None,
        negative_features: Float[Tensor, "#batch negatives features"] | None,
        slots: Int[Tensor, "batch length_plus_1"],
        real: Bool[Tensor, "batch length_plus_1"],
        types: Int[Tensor, "batch length_plus_1"],
        gaps: Int[Tensor, "batch length_plus_1"],
        loss_weights: Float[Tensor, "batch length"],
        masked: Bool[Tensor, "batch negatives"],
        kept: Float[Tensor, "batch length dim"] | None = None,
    ) -> Float[Tensor, "batch"]:
        """Return the weighted next-item loss of each sample, one window of events.

        Args:
            own_rows: id-table rows of the distinct items of the window.
            negative_rows: id-table rows of the negatives, one set a sample or one for the batch.
            own_features: public features of the own items; ``None`` for a model without features.
            negative_features: public features of the negatives, likewise.
            slots: which own row each event is, oldest first, left-padded. Events but the last are inputs, events
                but the first are targets.
            real: which events are not padding.
            types: event types.
            gaps: time between events, see ``Transformer.forward``.
            loss_weights: weight of each target's loss in the sample's; 0 where target or input is padding.
            masked: negatives that occur in the sample itself.
            kept: factors of the inputs of the transformer's blocks; ``None`` for no dropout.
        """
        own = self.item(own_rows, own_features)
        negatives = self.item(negative_rows, negative_features)
        events = torch.gather(own, 1, slots[..., None].expand(-1, -1, own.shape[-1]))
        query = self.user(self.transformer(events[:, :-1], types[:, :-1], gaps[:, :-1], real[:, :-1], kept))
        positive = (query * events[:, 1:]).sum(dim=-1)
        # Shared negatives are one matrix for all positions; a batched product would first copy them for every sample.
        scores = functional.linear(query, negatives[0]) if len(negatives) == 1 else query @ negatives.mT
        loss = sampled_softmax(positive, scores, masked, self.shape.n_items)
        return (loss * loss_weights).sum(dim=-1)


def initial_arrays(shape: ModelShape, seed: int) -> dict[str, Tensor]:
    """Return the arrays of a fresh model by name, a function of ``shape`` and the public ``seed`` alone.

    The id table is zero: the private start, or training, fills it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        model = RecallModel(shape)
    arrays = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return {ITEM_ID: torch.zeros(shape.n_items, shape.dim), **arrays}


def array_names(shape: ModelShape) -> tuple[str, ...]:
    """Return the names of ``initial_arrays`` without making them."""
    with torch.device("meta"):
        return (ITEM_ID, *RecallModel(shape).state_dict())
