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
    """The global optimiser, the averaging of its iterates, and checkpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimiser: Literal["sgd", "fedavgm", "fedadam"] = Field(
        "fedadam", description="of the global model: plain steps; with momentum; steps for each coordinate"
    )
    learning_rate: Positive = Field(
        0.01, description="step on the mean update; 1 with sgd is plain federated averaging"
    )
    learning_rate_scales: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = Field(
        {},
        description="factor on the learning rate of arrays whose name starts with the key, such as `item.`; the "
        "longest key wins, without one it is 1, and 0 freezes",
    )
    momentum: Decay = Field(0.9, description="of fedavgm")
    beta1: Decay = Field(0.9, description="decay of the first moment of fedadam")
    beta2: Decay = Field(0.99, description="decay of the second moment of fedadam")
    adaptivity: Positive = Field(
        1e-8, description="added to the root of the second moment of fedadam, in units of the update (tau)"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="of the learning rate after the warm-up: none, or a decay"
    )
    warmup_rounds: Annotated[int, Field(ge=0)] = Field(
        0, description="over which the learning rate rises linearly; round 0 has 1 / warmup_rounds of it"
    )
    final_share: Share = Field(0.0, description="share of the learning rate that a decay ends at")
    average: Literal["none", "ema", "tail"] = Field(
        "none", description="what is released: the last iterate; an exponential average; the mean of the last iterates"
    )
    ema_decay: Decay = Field(
        0.95, description="weight of the past in ema; the first iterates are averaged evenly instead"
    )
    tail_share: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = Field(
        0.5, description="share of the rounds, the last ones, that tail averages"
    )
    checkpoint_every: Annotated[int, Field(ge=1)] = Field(10, description="rounds between checkpoints")
    keep_checkpoints: Annotated[int, Field(ge=1)] = Field(2, description="how many of the newest stay")


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
