"""Honest baselines: fitted on training events, tuned on validation, given the same context as the model.

The leak probe beside them is a dishonest one, for the evaluation to be tried on.
"""

from fedrecall.simulations.baselines.ease import Ease
from fedrecall.simulations.baselines.histories import Cooccurrence, count_cooccurrence, weighted_histories
from fedrecall.simulations.baselines.item_knn import ItemKNN
from fedrecall.simulations.baselines.most_popular import MostPopular
from fedrecall.simulations.baselines.own_first import OwnFirst
from fedrecall.simulations.baselines.tuning import TunedBaseline, fit_tuned_baselines

__all__ = [
    "Cooccurrence",
    "Ease",
    "ItemKNN",
    "MostPopular",
    "OwnFirst",
    "TunedBaseline",
    "count_cooccurrence",
    "fit_tuned_baselines",
    "weighted_histories",
]
