"""The shape of a recall model: the public numbers that fix its arrays."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Public sizes of a recall model.

    Attributes:
        n_items: items in the catalogue.
        n_features: public features an item (columns of the category matrix); 0 for none.
        n_types: event types.
        dim: width of item, context and query vectors.
        window: most recent events that the transformer reads.
        blocks: transformer blocks.
        heads: attention heads; divides ``dim``.
        hidden: width of a block's feed-forward layer.
        user_dim: width of a user tower's private vector.
        user_hidden: width of a user tower's hidden layer.
    """

    n_items: int
    n_features: int
    n_types: int
    dim: int
    window: int
    blocks: int
    heads: int
    hidden: int
    user_dim: int
    user_hidden: int
