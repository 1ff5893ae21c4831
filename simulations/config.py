"""The configuration of a run: one TOML file or preset, overridden key by key. Unknown keys are refused."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedrecall.client.config import LocalConfig, PersonalConfig
from fedrecall.protocol.errors import ConfigError
from fedrecall.server.config import ServerConfig
from fedrecall.simulations.presets.names import DEFAULT, preset_names, preset_text
from fedrecall.simulations.toml import toml_text

Share = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null(cls, data: Any) -> Any:
        """Read "null" as no value: TOML has no null."""
        if not isinstance(data, dict):
            return data
        return {key: None if value == "null" else value for key, value in data.items()}


class DataConfig(_Section):
    """Which data, which split."""

    name: str = Field("ml-100k", description="of `fedrecall data list`")
    path: Path | None = Field(None, description="folder of a known data set; otherwise the cache")
    protocol: Literal["loo", "temporal", "ncf", "random", "given"] = Field(
        "loo",
        description="held out: the last item that each device met for the first time; those after one date; the last, "
        "among sampled items; one of each device, drawn; what an import's own files say",
    )
    repeats: Literal["mask", "recommend"] = Field(
        "mask",
        description="what a person has already: never recommended, never a target; 'recommend': again, where people "
        "buy or play again",
    )
    catalogue: Literal["file", "rated"] = Field("file", description="'rated' is a benchmark convention")
    k_core: int = Field(0, ge=0, description="a benchmark convention; 0 keeps everybody")


class ModelConfig(_Section):
    """Sizes of the model."""

    dim: int = Field(64, ge=2, description="length of an item's vector and of a query")
    window: int = Field(64, ge=2, description="most recent events that the transformer reads")
    blocks: int = Field(2, ge=0, description="of the transformer")
    heads: int = Field(2, ge=1, description="of attention in a block; they divide dim")
    hidden: int = Field(128, ge=1, description="width of a block's inner layer")
    user_dim: int = Field(8, ge=1, description="length of the user tower's private vector")
    user_hidden: int = Field(16, ge=1, description="width of the user tower's inner layer")
    features: bool = Field(False, description="project the catalogue's categories into item vectors")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelConfig":
        if self.dim % self.heads:
            raise ValueError(f"heads is {self.heads}: it must divide dim, which is {self.dim}")
        return self


class AdaptiveClipConfig(_Section):
    """The settings of ``fedrecall.protocol.plan.AdaptiveClip``."""

    quantile: float = Field(0.5, gt=0, lt=1, description="share of contributions that the clip leaves whole")
    learning_rate: float = Field(0.2, gt=0, le=1, description="of the clip's logarithm, a round")
    share: float = Field(0.05, gt=0, lt=1, description="share of the rounds' mu^2 that the count gets")


class PrivacyConfig(_Section):
    """The plan: unit, trust, budget. The noise follows from it."""

    unit: Literal["user", "interaction"] = Field("user", description="what neighbours differ in: a device, an event")
    trust: Literal["central", "local"] = Field("central", description="who adds the noise: the server, each device")
    epsilon: float | None = Field(8.0, gt=0, description="target of adversary released-model; null: no privacy")
    delta: float | None = Field(
        None, gt=0, lt=1, description="null: 1e-5, or the power of ten below one over the devices if that is smaller"
    )
    clip_norm: float = Field(0.1, gt=0, description="L2 bound of one sample's contribution to a round")
    shares: dict[Literal["popularity", "second_moments", "rounds"], Share] = Field(
        {"popularity": 0.03, "second_moments": 0.87, "rounds": 0.10},
        description="share of mu^2 of each mechanism; those that run must sum to 1",
    )
    adaptive_clip: AdaptiveClipConfig | None = Field(
        None, description="lets the clip follow a private quantile, its count charged; null: a fixed clip"
    )

    @model_validator(mode="after")
    def _unit_fits_trust(self) -> "PrivacyConfig":
        if (self.unit, self.trust) == ("user", "local"):
            raise ValueError(
                "unit 'user' with trust 'local' would drown one device's whole history in noise: choose unit "
                "'interaction', or trust 'central'"
            )
        return self


class StartConfig(_Section):
    """The private start: first item vectors from two statistics."""

    enabled: bool = Field(True, description="off: the id table starts from public random numbers")
    items: int = Field(1380, ge=0, description="most popular items that second moments compare, at most (1 MB up)")
    items_per_signal: float = Field(
        12.7, gt=0, description="at most this many times the square root of devices times mu^(3/4) of second moments"
    )
    reach: float = Field(8.0, gt=0, description="events over which the closeness of two items falls to 1 / e")
    exponent: float = Field(0.25, ge=0, le=1, description="an item weighs its popularity to minus this, in comparisons")
    power: float = Field(0.3, gt=0, le=1, description="of an eigenvalue, as the length of its direction")
    cut: float = Field(0.5, ge=0, le=2, description="share of the noise's edge that is taken off every eigenvalue")
    content: float = Field(
        5.0, ge=0, description="weight of public content beside second moments, in edges of their noise; 0: none"
    )
    content_items: int = Field(1400, ge=1, description="most popular items that content gives vectors of their own")
    decay: float = Field(0.82, gt=0, le=1, description="first weight of an event, by age in events")
    prior: float = Field(
        2.0, gt=0, description="first weight of an event that says nothing: short histories lean on popularity"
    )
    scale: float = Field(11.0, gt=0, description="first length of context vectors: the softmax's inverse temperature")
    popularity: float = Field(0.36, ge=0, description="first weight of popularity in a context")


class RoundsConfig(_Section):
    """Federated rounds after the start."""

    count: int = Field(20, ge=0, description="how many; 0: the start alone")
    passes: float | None = Field(
        None, gt=0, description="no more rounds than ask each device this often on average; null: no such limit"
    )
    cohort: int | None = Field(None, ge=1, description="expected devices of a round; null: everyone")
    sampling: Literal["poisson", "fixed_size", "limited"] = Field(
        "poisson",
        description="of a cohort: independent secret coins; a secret subset of fixed size; or devices in turn, which "
        "needs no secret and lets noise be correlated over rounds",
    )
    bands: int | None = Field(
        1, ge=1, description="sampling 'limited': rounds whose noise is correlated; null: as many as pay"
    )
    train: tuple[str, ...] = Field(("item.", "transformer."), description="prefixes of the arrays that rounds train")
    evaluate_every: int = Field(5, ge=1, description="rounds between validations (simulation only)")


class FlowerConfig(_Section):
    """Flower's simulation engine; read by engine ``flower`` alone."""

    shards: Annotated[int, Field(ge=1)] | Literal["users"] | None = Field(
        None, description="virtual nodes that share the users; 'users': a node for each; null: one a thread"
    )
    address: str | None = Field(
        None, description="of a Ray cluster to join, such as 'auto' on one of its machines; null: this machine alone"
    )

    @model_validator(mode="after")
    def _shards_of_a_cluster(self) -> "FlowerConfig":
        if self.address is not None and self.shards is None:
            raise ValueError(
                "flower.address needs flower.shards: as many as the cluster has cores, all machines together"
            )
        return self


class EvaluationConfig(_Section):
    """What is measured besides the model."""

    cutoffs: tuple[int, ...] = Field((10, 50), description="list lengths of the metrics; 10 and 50 among them")
    baselines: bool = Field(True, description="most popular, item-kNN, EASE, each device alone")
    central: bool = Field(True, description="the same model trained centrally")
    ablation: bool = Field(False, description="the model without start, rounds, user tower, each in turn")
    leak_probe: bool = Field(True, description="whether public negatives tell what was held out; not temporal")

    @model_validator(mode="after")
    def _contract(self) -> "EvaluationConfig":
        if not {10, 50} <= set(self.cutoffs) or min(self.cutoffs) < 1:
            raise ValueError(f"cutoffs are {self.cutoffs}: they must be at least 1, and 10 and 50 among them")
        return self


class CentralConfig(_Section):
    """Central training of the same model: plain mini-batches, Adam, no privacy."""

    batch: int = Field(256, ge=1, description="users a step")
    steps: int = Field(900, ge=1, description="of the optimiser")
    passes: float | None = Field(
        39, gt=0, description="no more steps than read each user this often on average; null: no such limit"
    )
    learning_rate: float = Field(2e-3, gt=0, description="of Adam, after the warm-up; then falling to 0")
    warmup_steps: int = Field(30, ge=0, description="over which the learning rate rises")


class RunConfig(_Section):
    """Everything that a run depends on, besides the data and the versions."""

    seed: int = Field(0, ge=0, lt=2**63, description="of everything random; the run is a simulation")
    engine: Literal["cohort", "device", "flower"] = Field(
        "cohort", description="many devices at once; one after the other with Opacus; on Flower's simulation engine"
    )
    threads: int = Field(0, ge=0, description="torch threads; 0: all cores")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    start: StartConfig = StartConfig()
    rounds: RoundsConfig = RoundsConfig()
    local: LocalConfig = LocalConfig()
    flower: FlowerConfig = FlowerConfig()
    server: ServerConfig = ServerConfig()
    personal: PersonalConfig = PersonalConfig()
    central: CentralConfig = CentralConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def published(self) -> dict[str, Any]:
        """Return the settings as plain JSON data, without where data and workers are: a run's folder may be published.

        Neither changes a bit of the result.
        """
        return self.model_dump(mode="json", exclude={"data": {"path"}, "flower": {"address"}})

    @model_validator(mode="after")
    def _sound(self) -> "RunConfig":
        if self.engine == "flower" and self.local.tower_learning_rate:
            raise ValueError(
                "local.tower_learning_rate must be 0 with engine 'flower': virtual nodes keep nothing between rounds; "
                "use engine 'cohort' or 'device'"
            )
        if self.privacy.unit == "interaction":
            if self.local.tower_learning_rate:
                raise ValueError(
                    "local.tower_learning_rate must be 0 with unit 'interaction': a noiseless tower would make a "
                    "sample's gradient read other events (docs/privacy.md, rule 1)"
                )
            if self.local.steps != 1:
                raise ValueError("local.steps must be 1 with unit 'interaction': one gradient at the released weights")
            if self.rounds.cohort is not None:
                raise ValueError(
                    "rounds.cohort must be null with unit 'interaction': sampling devices does not amplify it"
                )
        return self


def load_config(
    path: Path | None = None,
    preset: str | None = None,
    overrides: list[str] | None = None,
    *,
    dataset: str | None = None,
    data_path: Path | None = None,
    protocol: str | None = None,
    engine: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return the configuration from a preset, then a file, then ``key=value`` overrides, then the other arguments.

    Args:
        path: TOML file; it may be partial.
        preset: name of a preset; ``user-eps8`` where neither it nor ``path`` is given.
        overrides: ``section.key=value``; the value is TOML, or a bare string.
        dataset: shorthand of the key ``data.name``; here as below, ``None`` leaves the key alone.
        data_path: of ``data.path``.
        protocol: of ``data.protocol``.
        engine: of ``engine``.
        seed: of ``seed``.
        settings: values by their dotted keys.

    Raises:
        ConfigError: an unknown key (naming the nearest), a value out of bounds, an unreadable file.
    """
    data: dict[str, Any] = {}
    if preset is not None or path is None:
        _merge(data, _preset(preset or DEFAULT))
    if path is not None:
        _merge(data, _read(path))
    for text in overrides or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {text!r} is not of the form section.key=value")
        _set(data, key.strip().split("."), _value(value.strip()))
    given = {
        "data.name": dataset,
        "data.path": data_path,
        "data.protocol": protocol,
        "engine": engine,
        "seed": seed,
    }
    for name, chosen in given.items():
        if chosen is not None:
            _set(data, name.split("."), chosen)
    for name, value in (settings or {}).items():
        _set(data, name.split("."), value)
    return parse_config(data)


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Return ``config`` with values by their dotted keys; raises ConfigError as ``load_config``."""
    data = config.model_dump()
    for name, value in settings.items():
        _set(data, name.split("."), value)
    return parse_config(data)


def parse_config(data: dict[str, Any]) -> RunConfig:
    """Validate plain data, such as a resolved configuration read back."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors(include_url=False))) from None


def to_toml(config: RunConfig) -> str:
    """Return the resolved configuration as TOML, which ``load_config`` reads back to the same.

    Without what is this machine's business, see ``RunConfig.published``.
    """
    return toml_text(config.published())


def _preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"no preset {name!r}: {hint}there are {', '.join(preset_names())}")
    return tomllib.loads(preset_text(name))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _set(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{'.'.join(keys)}: {key} is a value, not a section")
        data = inner
    data[keys[-1]] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: Any) -> str:
    """Turn one pydantic error into a sentence with the key, and the nearest key for an unknown one."""
    keys = [str(k) for k in error["loc"]]
    if error["type"] != "extra_forbidden":
        value = f" (got {error['input']!r})" if not isinstance(error["input"], dict) else ""
        return f"{'.'.join(keys) or 'configuration'}: {error['msg'].removeprefix('Value error, ')}{value}"
    section: Any = RunConfig
    for key in keys[:-1]:
        section = section.model_fields[key].annotation
    near = difflib.get_close_matches(keys[-1], list(section.model_fields), 1, cutoff=0.4)
    hint = f"did you mean {'.'.join([*keys[:-1], near[0]])!r}?" if near else f"known: {', '.join(section.model_fields)}"
    return f"unknown key {'.'.join(keys)!r}: {hint}"
