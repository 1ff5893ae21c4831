"""What the clip of single samples multiplies by, in double precision: for Opacus' step and for many devices at once."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sample_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return the float64 norm of each sample [samples] over all ``gradients`` [samples, ...] together."""
    parts = [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in gradients]
    norms: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return norms


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """Return what bounds a sample of each norm by ``clip_norm``: 1 within it, 0 for a norm that is not finite."""
    return torch.where(torch.isfinite(norms), (clip_norm / norms.clamp(min=1e-300)).clamp(max=1.0), 0.0)
