"""The item tower (shared) and the user tower (private, stays on its device)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fedrecall.models.shape import ModelShape


class ItemTower(nn.Module):
    """Item vector = id row + projected public features, so that an item without a trained id still has a vector.

    The id table (``ITEM_ID``) is data, not a layer: a device looks up the few rows it needs, the batched path gathers
    them for many devices at once, and both hand them to the same maths.
    """

    def __init__(self, shape: ModelShape) -> None:
        """Create the feature projection, zero."""
        super().__init__()
        self.features = nn.Linear(shape.n_features, shape.dim, bias=False) if shape.n_features else None
        if self.features is not None:
            nn.init.zeros_(self.features.weight)

    def forward(
        self, id_rows: Float[Tensor, "batch rows dim"], features: Float[Tensor, "batch rows features"] | None
    ) -> Float[Tensor, "batch rows dim"]:
        """Return the item vectors of looked-up id rows."""
        if self.features is None or features is None:
            return id_rows
        vectors: Tensor = id_rows + self.features(features)
        return vectors


class UserTower(nn.Module):
    """Query = context + residual network of (context, private vector). Starts as the identity.

    A new device therefore works at once on its context alone. Nothing of this module is on the allow-list: its
    weights never leave the device.
    """

    def __init__(self, dim: int, user_dim: int, user_hidden: int) -> None:
        """Create the tower; the last layer is zero, so that the query is the context."""
        super().__init__()
        self.vector = nn.Embedding(1, user_dim)
        self.hidden = nn.Linear(dim + user_dim, user_hidden)
        self.out = nn.Linear(user_hidden, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, context: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Return the query of every position."""
        private = self.vector(torch.zeros(context.shape[:2], dtype=torch.long, device=context.device))
        hidden = functional.gelu(self.hidden(torch.cat([context, private], dim=-1)))
        query: Tensor = context + self.out(hidden)
        return query
