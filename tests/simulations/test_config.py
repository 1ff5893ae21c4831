"""Configuration: every key is known, every value bounded, and what is written reads back the same."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrecall.protocol.errors import ConfigError
from fedrecall.simulations.config import RunConfig, load_config, parse_config, to_toml
from fedrecall.simulations.presets.names import preset_names


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_reads_back_the_same(name, tmp_path):
    config = load_config(preset=name, seed=5)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "config.toml") == config


def test_the_default_preset_is_user_eps8_and_a_file_alone_takes_none(tmp_path):
    assert load_config() == load_config(preset="user-eps8")
    (tmp_path / "empty.toml").write_text("")
    assert load_config(tmp_path / "empty.toml") == RunConfig()


def test_arguments_override_overrides_which_override_the_file(tmp_path):
    (tmp_path / "c.toml").write_text("seed = 1\n[rounds]\ncount = 7\ncohort = 10\n")
    config = load_config(tmp_path / "c.toml", None, ["seed=2", "rounds.count=8", "rounds.cohort=null"], seed=3)
    assert (config.seed, config.rounds.count, config.rounds.cohort) == (3, 8, None)


@given(st.text().filter(lambda text: text != "null"))
def test_any_name_survives_being_written(name):
    config = parse_config({"data": {"name": name}, "server": {"learning_rate_scales": {name: 0.5}}})
    assert parse_config(tomllib.loads(to_toml(config))) == config


def test_where_the_data_lies_is_not_written(tmp_path):
    config = load_config(data_path=tmp_path)
    assert config.data.path == tmp_path
    assert str(tmp_path) not in to_toml(config)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds.cuont=3", "did you mean 'rounds.count'"),
        ("privcy.epsilon=3", "did you mean 'privacy'"),
        ("server.learning_rat=3", "did you mean 'server.learning_rate'"),
        ("rounds.count=-1", "rounds.count"),
        ("rounds.count=many", "rounds.count"),
        ("privacy.epsilon=0", "privacy.epsilon"),
        ("privacy.epsilon=inf", "privacy.epsilon"),
        ("privacy.delta=1", "privacy.delta"),
        ("privacy.shares={popularity=0.5,other=0.5}", "privacy.shares"),
        ("privacy.trust=local", "would drown"),
        ("model.heads=3", "must divide dim"),
        ("evaluation.cutoffs=[10, 20]", "10 and 50"),
        ("seed=-1", "seed"),
        ("seed.inner=1", "seed is a value, not a section"),
        ("count", "section.key=value"),
    ],
)
def test_what_cannot_be_is_refused_by_name(override, said):
    overrides = ["seed=1", override] if override.startswith("seed.") else [override]
    with pytest.raises(ConfigError, match=r".") as refused:
        load_config(None, "open", overrides)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("local.tower_learning_rate=0.1", "rule 1"),
        ("local.steps=2", "one gradient"),
        ("rounds.cohort=10", "does not amplify"),
    ],
)
def test_unit_interaction_refuses_what_would_break_it(setting, said):
    unit = ["privacy.unit=interaction", "privacy.trust=local"]
    assert load_config(None, "open", [*unit, "rounds.cohort=null", "local.tower_learning_rate=0.0"])
    with pytest.raises(ConfigError) as refused:
        load_config(None, "open", [*unit, "rounds.cohort=null", setting])
    assert said in str(refused.value)


def test_unreadable_files_and_unknown_presets_are_named(tmp_path):
    (tmp_path / "bad.toml").write_text("a = [")
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    for path in (tmp_path / "none.toml", tmp_path / "bad.toml", tmp_path / "latin.toml"):
        with pytest.raises(ConfigError, match=path.name):
            load_config(path)
    with pytest.raises(ConfigError, match="did you mean 'user-eps8'"):
        load_config(preset="user-esp8")
