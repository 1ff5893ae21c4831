"""The shared transformer: a device's recent events in, one context vector a position out.

Own blocks from Linear, LayerNorm and a plain softmax of products: per-sample gradients are then exact in Opacus and
vectorise, left-padded rows stay finite, and over a few dozen events no fused kernel is faster. The last layers start
at zero, so that an untrained transformer is exactly the recency head: the mean of the events' item vectors, weighted
by age. Training starts from that useful model.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fedrecall.models.shape import ModelShape

GAPS = 32
"""Rows of the table of gaps: whole binary logarithms of 1 + the seconds since the event before."""


class Block(nn.Module):
    """One pre-norm transformer block (Xiong and others 2020): attention, then a feed-forward layer."""

    def __init__(self, shape: ModelShape) -> None:
        """Create a block whose two residual branches start at zero."""
        super().__init__()
        self.heads = shape.heads
        self.norm_attention = nn.LayerNorm(shape.dim)
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim)
        self.mix = nn.Linear(shape.dim, shape.dim)
        self.norm_hidden = nn.LayerNorm(shape.dim)
        self.hidden = nn.Linear(shape.dim, shape.hidden)
        self.out = nn.Linear(shape.hidden, shape.dim)

    def forward(
        self, x: Float[Tensor, "batch length dim"], hidden: Float[Tensor, "batch length length"]
    ) -> Float[Tensor, "batch length dim"]:
        """Transform every position; position t reads s where ``hidden[:, t, s]`` is 0 and not minus infinity."""
        batch, length, dim = x.shape
        split = (batch, length, 3, self.heads, dim // self.heads)
        q, k, v = self.qkv(self.norm_attention(x)).view(split).permute(2, 0, 3, 1, 4)
        scores = (q * (dim // self.heads) ** -0.5) @ k.mT
        mixed = torch.softmax(scores + hidden[:, None], dim=-1) @ v
        x = x + self.mix(mixed.transpose(1, 2).reshape(batch, length, dim))
        out: Tensor = x + self.out(functional.gelu(self.hidden(self.norm_hidden(x))))
        return out


class RecencyHead(nn.Module):
    """Projected mean of the events seen so far, weighted by a learned function of their age in events.

    One event more, whose vector is zero, stands for what is known before any event. It pulls the mean of a short
    history towards nothing, so that what does not depend on the history (the projection's bias: popularity) counts
    for more where little is known: the posterior mean of a normal prior (Efron and Morris 1973), with its weight
    learned like the others.
    """

    def __init__(self, shape: ModelShape, *, decay: float = 0.85, prior: float = 2.0) -> None:
        """Create the head with weights ``decay ** age``, ``prior`` (the last row), and the identity as projection."""
        super().__init__()
        self.age = nn.Embedding(shape.window + 1, 1)
        self.project = nn.Linear(shape.dim, shape.dim)
        with torch.no_grad():
            weights = torch.cat([torch.tensor(decay) ** torch.arange(shape.window), torch.tensor([prior])])
            self.age.weight.copy_(torch.log(weights)[:, None])
            nn.init.eye_(self.project.weight)
            nn.init.zeros_(self.project.bias)

    def forward(
        self, items: Float[Tensor, "batch length dim"], hidden: Float[Tensor, "batch length length"]
    ) -> Float[Tensor, "batch length dim"]:
        """Return the weighted mean up to and including every position."""
        batch, length, _ = items.shape
        steps = torch.arange(length, device=items.device)
        rows = torch.cat([steps, steps.new_full((1,), self.age.num_embeddings - 1)])
        # Ids expanded over the batch before the look-up: a broadcast embedding breaks per-sample gradients.
        logits = self.age(rows.expand(batch, length + 1)).squeeze(-1)
        ages = (steps[:, None] - steps[None, :]).clamp(min=0)
        prior = logits[:, -1:, None].expand(batch, length, 1)
        shares = torch.softmax(torch.cat([logits[:, ages] + hidden, prior], dim=-1), dim=-1)
        mean: Tensor = self.project(shares[..., :-1] @ items)
        return mean


class Transformer(nn.Module):
    """Context of every position = recency head + causal transformer over (item vector, event type, gap, age)."""

    def __init__(self, shape: ModelShape) -> None:
        """Create the transformer; its output projection is zero."""
        super().__init__()
        self.recency = RecencyHead(shape)
        self.event_type = nn.Embedding(shape.n_types, shape.dim)
        self.position = nn.Embedding(shape.window, shape.dim)
        self.norm_in = nn.LayerNorm(shape.dim)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.blocks)])
        self.norm_out = nn.LayerNorm(shape.dim)
        self.out = nn.Linear(shape.dim, shape.dim)
        # Zeros that are drawn from no random state: what is drawn after them is as without them.
        self.gap = nn.Embedding(GAPS, shape.dim, _weight=torch.zeros(GAPS, shape.dim))
        nn.init.normal_(self.event_type.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        items: Float[Tensor, "batch length dim"],
        types: Int[Tensor, "batch length"],
        gaps: Int[Tensor, "batch length"],
        real: Bool[Tensor, "batch length"],
        kept: Float[Tensor, "batch length dim"] | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        """Return one context a position. Rows are left-padded; padding (``real`` false) yields finite values.

        ``gaps`` says how long after the one before it each event came, as a row of the table of gaps. ``kept``
        multiplies what goes into the blocks, in training with dropout; the recency head sees everything.
        """
        batch, length, _ = items.shape
        steps = torch.arange(length, device=items.device)
        causal = steps[:, None] >= steps[None, :]
        # A padded position sees itself, so that no row of a softmax is empty.
        visible = (causal & real[:, None, :]) | torch.eye(length, dtype=torch.bool, device=items.device)
        hidden = torch.zeros_like(visible, dtype=items.dtype).masked_fill(~visible, float("-inf"))
        recent: Tensor = self.recency(items, hidden)
        if self._silent():
            return recent
        # Counted from the newest place, so that more padding on the left changes nothing.
        places = steps + self.position.num_embeddings - length
        positions = self.position(places.expand(batch, length))
        x = self.norm_in(items) + self.event_type(types) + self.gap(gaps) + positions
        if kept is not None:
            x = x * kept
        for block in self.blocks:
            x = block(x, hidden)
        context: Tensor = recent + self.out(self.norm_out(x))
        return context

    def _silent(self) -> bool:
        """Say whether nothing of the blocks reaches the context: their output is zero, and none of them is trained."""
        if any(p.requires_grad for name, p in self.named_parameters() if not name.startswith("recency.")):
            return False
        return not bool(self.out.weight.any()) and not bool(self.out.bias.any())
