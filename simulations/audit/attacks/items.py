"""From what is seen of a round to a score for every item, of being in the history behind it.

Where the item table is trained, a row moves if the item is there: towards the query as a target, and away from it as
a negative. Without the table, the recency head still tells: the gradient of its bias is the mean of the targets'
vectors minus that of the model's guesses, and that of its projection pairs targets with contexts.
"""

import numpy as np
from jaxtyping import Float64

from fedrecall.models.recall import ITEM_ID
from fedrecall.simulations.audit.attacks.observed import View

_BIAS = "transformer.recency.project.bias"
_PROJECT = "transformer.recency.project.weight"

Scorers = dict[str, Float64[np.ndarray, "views items"]]


def item_scores(views: list[View], vectors: Float64[np.ndarray, "items dim"]) -> Scorers:
    """Return every way to score all items from each view; empty where nothing seen depends on items.

    Each comes twice: as it is, and minus its mean over the views, where there are several, because who sees many
    updates knows what is usual.

    Args:
        views: of one defence; they hold the same arrays.
        vectors: released item vectors.
    """
    white = whitened(vectors)
    rows = [scores_of(view, white) for view in views]
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if len(views) > 1:
        found |= {f"{name}, centred": scores - scores.mean(axis=0) for name, scores in found.items()}
    return found


def scores_of(view: View, white: Float64[np.ndarray, "items rank"]) -> dict[str, Float64[np.ndarray, " items"]]:
    """Return the scores of one view; ``white`` maps a gradient in vector space to one number an item."""
    scores: dict[str, Float64[np.ndarray, " items"]] = {}
    if ITEM_ID in view.arrays:
        rows = np.array(view.arrays[ITEM_ID], dtype=np.float64)
        away = rows[view.negatives].mean(axis=0)
        query = -away / max(float(np.linalg.norm(away)), 1e-12)
        length = np.linalg.norm(rows, axis=1)
        # An untouched row is as little news as that of a negative, which points away from the query.
        scores["direction of the row"] = np.where(length > 0, rows @ query / np.maximum(length, 1e-300), -1.0)
        # What every negative gets is no news about the histories.
        rows[view.negatives] -= away
        scores["length of the row"] = np.linalg.norm(rows, axis=1)
        scores["row along the query"] = rows @ query
    if _BIAS in view.arrays:
        scores["vector along the bias"] = white @ np.asarray(view.arrays[_BIAS], dtype=np.float64)
    if _PROJECT in view.arrays:
        project = white @ np.asarray(view.arrays[_PROJECT], dtype=np.float64)
        scores["vector in the projection"] = (project * white).sum(axis=1)
        scores["length in the projection"] = np.linalg.norm(project, axis=1)
    return scores


def whitened(vectors: Float64[np.ndarray, "items dim"]) -> Float64[np.ndarray, "items dim"]:
    """Return the vectors without their common part and with their covariance undone, a ridge of 1 % of it left in."""
    centred = vectors - vectors.mean(axis=0)
    covariance = centred.T @ centred / max(1, len(vectors))
    ridge = 0.01 * np.trace(covariance) / len(covariance) + 1e-12
    return np.asarray(np.linalg.solve(covariance + ridge * np.eye(len(covariance)), centred.T).T)


def averaged(rounds: list[Scorers]) -> Scorers:
    """Return the mean of each scorer over several rounds of the same views."""
    return {name: np.mean([scores[name] for scores in rounds], axis=0) for name in rounds[0]}
