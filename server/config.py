"""Settings of the server: what it makes of the start, how means move the global model, when the model is saved.

None of them touches privacy: everything here is post-processing of releases. Clip, noise, sampling and the
number of rounds belong to the plan.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedrecall.protocol.statistics import LEAST_REACH

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]


class ServerConfig(BaseModel):
    """The global optimiser, the averaging of its iterates, and checkpoints.

    Attributes:
        optimiser: ``sgd``; ``fedavgm``: with momentum; ``fedadam``: per-coordinate steps.
        learning_rate: step on the mean update; 1 with ``sgd`` is plain federated averaging.
        learning_rate_scales: factor on the learning rate of the arrays whose name starts with the key
            (``item.``, ``transformer.``); the longest key wins, arrays without one have factor 1, 0 freezes.
        momentum: of ``fedavgm``.
        beta1: decay of the first moment of ``fedadam``.
        beta2: decay of the second moment of ``fedadam``.
        adaptivity: added to the root of the second moment of ``fedadam``, in units of the update (tau).
        schedule: of the learning rate after warm-up: ``constant``, ``linear`` or ``cosine`` decay.
        warmup_rounds: rounds over which the learning rate rises linearly; round 0 has 1 / ``warmup_rounds``.
        final_share: share of the learning rate that a decay ends at.
        average: what is released: the last iterate (``none``), an exponential average (``ema``), or the mean
            of the last iterates (``tail``).
        ema_decay: weight of the past in ``ema``; the first iterates are averaged evenly instead.
        tail_share: share of the rounds, the last ones, whose iterates ``tail`` averages.
        checkpoint_every: rounds between checkpoints.
        keep_checkpoints: how many of the newest checkpoints stay.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimiser: Literal["sgd", "fedavgm", "fedadam"] = "fedadam"
    learning_rate: Positive = 0.01
    learning_rate_scales: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = {}
    momentum: Decay = 0.9
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    adaptivity: Positive = 1e-8
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    final_share: Share = 0.0
    average: Literal["none", "ema", "tail"] = "none"
    ema_decay: Decay = 0.95
    tail_share: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 0.5
    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2


class StartSettings(BaseModel):
    """The private start: what devices are asked to compare, and what is made of the releases.

    Attributes:
        compared: how many of the most popular items second moments compare; 0 for no second moments.
        reach: events over which the closeness of two items falls to 1 / e.
        exponent: an item weighs its popularity to minus this, in comparisons.
        power: of an eigenvalue, as the length of its direction.
        cut: share of the noise's edge that is taken off every eigenvalue.
        content: weight of public content beside second moments, in edges of their noise; 0 for none.
        content_items: most popular items that content gives vectors of their own.
        decay: first weight of an event, by age in events.
        prior: first weight of what is known before any event, in events.
        scale: first length of context vectors.
        popularity: first weight of popularity in a context.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    compared: Annotated[int, Field(ge=0)]
    reach: Annotated[float, Field(ge=LEAST_REACH, allow_inf_nan=False)]
    exponent: Share
    power: Annotated[float, Field(gt=0.0, le=1.0)]
    cut: Annotated[float, Field(ge=0.0, le=2.0)]
    content: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    content_items: Annotated[int, Field(ge=1)]
    decay: Annotated[float, Field(gt=0.0, le=1.0)]
    prior: Positive
    scale: Positive
    popularity: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
