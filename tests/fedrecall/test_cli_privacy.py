import json
import math
import re
import tomllib
from xml.etree import ElementTree

import pytest

from fedrecall.cli.app import call
from fedrecall.cli.chart import text_chart
from fedrecall.privacy.accounting.gaussian import gaussian_mu
from fedrecall.privacy.mechanisms.correlated import coefficients, sensitivity
from fedrecall.simulations.config import parse_config
from fedrecall.simulations.training.plan import plan_for

MU = gaussian_mu(8.0, 1e-5)
COHORTS = ["-c", "rounds.cohort=200", "-c", "rounds.count=12"]


def answer(capsys, *arguments):
    assert call(["privacy", *arguments, "--format", "json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def said(capsys, *arguments):
    assert call(["privacy", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def calibrated(capsys, *arguments):
    return answer(capsys, "calibrate", "--epsilon", "8", "--delta", "1e-5", "--steps", "40", *arguments)


class TestCalibrate:
    def test_limited_participation_is_the_closed_form(self, capsys):
        found = calibrated(capsys, "--participations", "4", "--min-gap", "10", "--bands", "3")
        m = found["mechanism"]
        assert (m["sampling"], m["adjacency"], m["sample_rate"], m["bands"]) == ("limited", "zero_out", 0.1, 3)
        exact = sensitivity(coefficients(3), 40, 4, 10) / MU
        assert found["noise_multiplier"] == pytest.approx(exact, rel=1e-3)
        best = calibrated(capsys, "--sampling", "limited", "--participations", "4", "--min-gap", "10")
        assert best["mechanism"]["bands"] > 1

    @pytest.mark.slow
    def test_a_fixed_size_cohort_is_a_replacement_and_by_rdp(self, capsys):
        options = ("--sampling", "fixed_size", "--cohort-size", "40", "--devices", "1000")
        found = calibrated(capsys, *options)
        assert found["mechanism"]["adjacency"] == "replace_one" and found["mechanism"]["sample_rate"] == 0.04
        assert found["cross_check"]["pld"] is None and 7.999 <= found["cross_check"]["rdp"] <= 8.0
        coins = calibrated(capsys, "--cohort-size", "40", "--devices", "1000")
        assert coins["mechanism"]["sampling"] == "poisson"
        assert found["noise_multiplier"] > coins["noise_multiplier"]

    def test_distributed_says_each_devices_share(self, capsys):
        found = calibrated(capsys, "--trust", "distributed", "--min-survivors", "60", "--colluders", "11")
        assert found["noise_multiplier"] == pytest.approx(math.sqrt(40) / MU, rel=1e-3)
        assert found["share_noise_multiplier"] == pytest.approx(found["noise_multiplier"] / 7)
        rows = {row["name"]: row for row in found["adversaries"]}
        assert 7.99 <= rows["server"]["epsilon"] <= 8.0

    def test_interactions_move_by_twice_the_clip_unless_one_says_otherwise(self, capsys):
        blocks = calibrated(capsys, "--unit", "interaction", "--trust", "local")
        events = calibrated(capsys, "--unit", "interaction", "--trust", "local", "--adjacency", "add_remove")
        assert blocks["noise_multiplier"] == pytest.approx(2 * events["noise_multiplier"], rel=1e-3)

    def test_the_cross_check_is_printed_with_all_that_it_depends_on(self, capsys):
        text = said(capsys, "calibrate", "--epsilon", "8", "--delta", "1e-5", "--steps", "4")
        line = next(line for line in text.splitlines() if line.startswith("Cross-check"))
        assert re.search(r"unit user, delta 1e-05, add_remove.*PLD 7\.99\d+, RDP [89]\.\d+, closed form 7\.99", line)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (["--cohort-size", "10"], "give devices"),
            (["--cohort-size", "10", "--devices", "99", "--sample-rate", "0.1"], "no sample_rate"),
            (["--sampling", "limited"], "participations is None"),
            (["--sampling", "limited", "--participations", "2", "--min-gap", "5", "--sample-rate", "0.2"], "lower it"),
            (["--sampling", "everyone", "--sample-rate", "0.5"], "with everyone taking part it is 1"),
            (["--trust", "distributed"], "min_survivors is 0: it must be above"),
            (["--bands", "3"], "correlated noise needs sampling 'limited'"),
            (["--sampling", "fixed_size", "--cohort-size", "4", "--devices", "9", "--adjacency", "add_remove"], "make"),
        ],
    )
    def test_what_does_not_fit_together_is_refused(self, options, reason, capsys):
        assert call(["privacy", "calibrate", "--epsilon", "8", "--delta", "1e-5", "--steps", "40", *options]) == 2
        assert reason in capsys.readouterr().err


class TestFit:
    @pytest.mark.parametrize(
        ("kind", "share"),
        [
            ("limited", "1"),
            ("limited", "0.2"),
            ("everyone", "1"),
            ("everyone", "0.2"),
            ("poisson", "0.2"),
            pytest.param("poisson", "1", marks=pytest.mark.slow),
        ],
    )
    def test_the_configuration_has_the_noise_of_the_chosen_plan(self, kind, share, capsys):
        bounds = ["--rounds", "20", "--min-rounds", "20", "--device-rounds", "3"]
        bounds = [] if kind == "everyone" else bounds
        options = ["--devices", "1000", "--epsilon", "4", "--sampling", kind, "--share", share, "--show", "1"]
        found = answer(capsys, "fit", *options, *bounds, "--choose", "1", "--clip", "0.3")
        fit = found["fits"][0]
        plan = plan_for(parse_config(tomllib.loads(found["configuration"])), 1000)
        rounds = plan.mechanism("rounds")
        assert rounds.noise_multiplier == pytest.approx(fit["noise_multiplier"], rel=2e-3)
        assert (rounds.steps, rounds.sampling, rounds.clip_norm) == (fit["rounds"], kind, 0.3)
        assert plan.cohort_size(rounds) == fit["cohort"] and plan.delta == found["delta"] == 1e-5
        assert fit["adversaries"][0]["epsilon"] == pytest.approx(4.0, abs=1e-3)

    def test_the_table_says_what_the_network_sees_and_where_the_clip_comes_from(self, capsys):
        options = ["--devices", "1000", "--epsilon", "4", "--sampling", "poisson", "--show", "1"]
        text = said(
            capsys, "fit", *options, "--rounds", "10", "--dimension", "99", "--uplink", "396", "--cohort", "125"
        )
        assert "1*" in text and "# clip_norm = the median norm of the updates" in text
        assert "which follows the norms of the updates" in text and "against network" in text
        assert '[privacy]\nunit = "user"' in text and "[start]\nenabled = false" in text

    def test_a_plan_that_no_run_can_have_says_so(self, capsys):
        found = answer(capsys, "fit", "--devices", "1000", "--epsilon", "4", "--trust", "distributed", "--show", "1")
        assert found["configuration"] is None and "trust" in found["reason"]

    def test_interactions_fit_too(self, capsys):
        options = ["--devices", "1000", "--epsilon", "8", "--unit", "interaction", "--trust", "local", "--share", "0.4"]
        found = answer(capsys, "fit", *options, "--show", "1")
        toml = tomllib.loads(found["configuration"])
        assert toml["privacy"]["shares"] == {"popularity": 0.6, "rounds": 0.4}
        made = plan_for(parse_config(toml), 1000).mechanism("rounds")
        assert made.noise_multiplier == pytest.approx(found["fits"][0]["noise_multiplier"], rel=2e-3)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (["--uplink", "100"], "--dimension"),
            (["--choose", "99", "--sampling", "everyone", "--show", "1"], "there are 1 plans"),
            (["--device-rounds", "0.0001"], "raise a bound"),
        ],
    )
    def test_what_cannot_be_answered_is_refused(self, options, reason, capsys):
        assert call(["privacy", "fit", "--devices", "1000", "--epsilon", "4", *options]) == 2
        assert reason in capsys.readouterr().err


class TestPlan:
    def test_the_curve_ends_in_the_table_and_the_picture_is_drawn(self, tmp_path, capsys):
        drawn = tmp_path / "epsilon.svg"
        found = answer(capsys, "plan", "--devices", "943", *COHORTS, "--picture", str(drawn))
        rows = {row["name"]: row["epsilon"] for row in found["adversaries"]}
        assert set(found["curve"]) == {"released-model", "network"}
        for name, curve in found["curve"].items():
            assert curve[-1] == [14, rows[name]]
            values = [epsilon for _, epsilon in curve]
            assert values == sorted(values) and len(values) == 14
        root = ElementTree.fromstring(drawn.read_text())
        text = " ".join(root.itertext())
        for part in ("released-model", "network", "popularity", "second_moments", "rounds", "releases so far"):
            assert part in text
        assert "epsilon (unit user, delta 1e-5)" in text and "--series-1: #" in text
        assert "released-model from" in root.attrib["aria-label"]

    def test_the_chart_fits_a_terminal(self, capsys):
        text = said(capsys, "plan", "--devices", "943", "-c", "rounds.count=4")
        chart = text[text.index("epsilon (unit user, delta 1e-5)") :]
        assert max(map(len, chart.splitlines())) <= 80 and chart.isascii()
        assert "released-model, network" in chart and "rounds from 3" in chart

    def test_nobody_bounded_is_nothing_drawn(self, tmp_path, capsys):
        command = ["plan", "--preset", "open", "--devices", "943"]
        assert "releases so far" not in said(capsys, *command)
        assert call(["privacy", *command, "--picture", str(tmp_path / "p.svg")]) == 2
        assert "bounds nobody" in capsys.readouterr().err and not (tmp_path / "p.svg").exists()


def test_a_chart_puts_values_where_they_belong():
    lines = {"first": [(0, 0.0), (5, 5.0), (10, 10.0)], "second": [(0, 5.0), (10, 5.0)]}
    chart = text_chart(lines, x_label="x", y_label="y", marks={"start": 0, "end": 10}, width=15, height=11)
    rows = chart.splitlines()[1:12]
    assert rows[0] == "10 |:         *" and rows[10] == " 0 |*****     :"
    assert rows[5] == " 5 |ooooo*****o"
    assert chart.splitlines()[-2:] == ["  *  first", "  o  second"]


def test_a_chart_of_one_point_and_of_zeros_is_drawn():
    chart = text_chart({"only": [(1, 0.0)]}, x_label="x", y_label="y", marks={"rounds": 1})
    assert "*" in chart and "only" in chart
