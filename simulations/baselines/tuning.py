"""Every baseline with its settings chosen on validation recall@50, as well as a small grid allows."""

from dataclasses import dataclass, replace
from itertools import product

from fedrecall.simulations.baselines.ease import Ease
from fedrecall.simulations.baselines.histories import count_cooccurrence
from fedrecall.simulations.baselines.item_knn import ItemKNN
from fedrecall.simulations.baselines.most_popular import MostPopular
from fedrecall.simulations.baselines.own_first import OwnFirst
from fedrecall.simulations.data.dataset import Catalogue
from fedrecall.simulations.data.splits import Split
from fedrecall.simulations.evaluation.evaluate import Progress, evaluate
from fedrecall.simulations.evaluation.recaller import Recaller

NEIGHBOURS = (10, 50, 200)
SHRINKAGES = (0.0, 20.0, 100.0)
REGULARISATIONS = (100.0, 300.0, 1000.0, 3000.0)
DECAYS = (0.9, 0.97, 0.85, 0.8)
"""The first is tried with every regularisation, the others with the best one."""
OWN_DECAYS = (1.0, 0.97, 0.9, 0.7)

_STEPS = 1 + len(NEIGHBOURS) * len(SHRINKAGES) + 2 * len(REGULARISATIONS) + len(DECAYS) - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedBaseline:
    """A fitted baseline, the settings that were chosen, and its validation metrics."""

    recaller: Recaller
    settings: dict[str, object]
    validation: dict[str, float]


def fit_tuned_baselines(
    split: Split, catalogue: Catalogue, progress: Progress | None = None
) -> dict[str, TunedBaseline]:
    """Fit ``most_popular``, ``item_knn``, ``ease`` and ``ease_weighted`` on the training events of ``split``.

    Where it recommends repeats, ``own_first`` too.
    The settings with the best recall@50 on validation win, the first of equals. Fitted once, never again on
    validation events; at test time those reach a baseline as context, as they reach the model.
    Of a catalogue with more than ``MAX_ITEMS`` rated items, neighbours and EASE know the most popular only:
    ``settings["left_out_rare_items"]`` says how many they do not know.
    """
    best: dict[str, TunedBaseline] = {}
    done, steps = 0, _STEPS + (len(OWN_DECAYS) if split.repeats == "recommend" else 0)

    def offer(name: str, recaller: Recaller, settings: dict[str, object]) -> bool:
        nonlocal done
        found = evaluate(recaller, split, "validation", catalogue=catalogue, ks=(10, 50)).metrics
        leads = name not in best or found["recall@50"] > best[name].validation["recall@50"]
        if leads:
            best[name] = TunedBaseline(recaller=recaller, settings=settings, validation=found)
        done += 1
        if progress:
            progress("baselines", done, steps)
        return leads

    offer("most_popular", MostPopular.fit(split.train), {})
    for decay in OWN_DECAYS if split.repeats == "recommend" else ():
        offer("own_first", OwnFirst.fit(split.train, decay=decay), {"decay": decay})
    together = count_cooccurrence(split.train)
    known = together.settings()
    for neighbours, shrinkage in product(NEIGHBOURS, SHRINKAGES):
        knn = ItemKNN.from_cooccurrence(together, neighbours=neighbours, shrinkage=shrinkage)
        offer("item_knn", knn, known | {"neighbours": neighbours, "shrinkage": shrinkage})
    for regularisation in REGULARISATIONS:
        ease = Ease.from_cooccurrence(together, regularisation=regularisation)
        offer("ease", ease, known | {"regularisation": regularisation})
        weighted = replace(ease, decay=DECAYS[0])
        if offer("ease_weighted", weighted, known | {"regularisation": regularisation, "decay": DECAYS[0]}):
            leader, leading = weighted, known | {"regularisation": regularisation}
    for decay in DECAYS[1:]:
        offer("ease_weighted", replace(leader, decay=decay), leading | {"decay": decay})
    return best
