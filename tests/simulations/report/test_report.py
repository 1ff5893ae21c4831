"""The report page: read back with a real HTML parser, from a run whose values are invented."""

import copy
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.protocol.jsontext import dumps
from fedrecall.protocol.plan import AdaptiveClip, Mechanism, Plan
from fedrecall.simulations.report import words
from fedrecall.simulations.report.page import render, write_report
from fedrecall.simulations.report.pictures import Interval, interval_chart
from fedrecall.simulations.report.spending import marks, spending, spending_svg
from fedrecall.simulations.runs.promises import privacy_section

from .invented_run import example_run

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page and fails where tags are not properly nested."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def run() -> dict:
    return example_run()


@pytest.fixture(scope="module")
def html(run) -> str:
    return render(run)


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_the_example_is_strict_json(run):
    dumps(run)


def test_first_screen_says_what_happened_and_never_a_bare_epsilon(page):
    first = page.text[: page.text.index("All metrics of all of them")]
    assert "943 devices with 100,000 private events on 1,682 public items" in first
    assert "13.5% of those items were among the first 10" in first and "35.2% among the first 50" in first
    assert "79% above most popular, 26% below the same model trained centrally, 27% below EASE, recent first" in first
    for part in (
        "Epsilon 8.000 at delta 1e-5 against released-model and network. Unit: user, one whole device",
        "neighbours: one of them added or removed; sampling: everyone; accountant: PLD.",
        "No bound against server: it sees each update before the noise.",
    ):
        assert part in first
    assert "Simulation. The noise is from a known seed (seed 0)" in first


def test_an_order_that_is_none_of_time_is_said_on_the_first_page(run):
    sorted_run = copy.deepcopy(run)
    sorted_run["dataset"]["order_warning"] = "events are in the order of item ids: give --time"
    text = Page(render(sorted_run)).text
    assert 0 < text.index("The events are in the order of item ids: give --time.") < text.index("recall@10")
    sorted_run["dataset"]["order_warning"] = None
    assert "Order." not in Page(render(sorted_run)).text


@pytest.mark.parametrize(
    ("protocol", "repeats", "ranked"),
    [
        ("loo", "mask", "in a ranking of the whole catalogue without what the person had before"),
        ("given", "recommend", "in a ranking of the whole catalogue, what the person had before included"),
        ("ncf", "mask", "among 99 sampled items only"),
    ],
)
def test_the_first_page_says_what_was_held_out_and_in_what_ranking(run, protocol, repeats, ranked):
    held_out = copy.deepcopy(run)
    held_out["evaluation"] |= {"protocol": protocol, "repeats": repeats, "held_out": "the last mug of each person"}
    text = Page(render(held_out)).text
    said = f"What was hidden: the last mug of each person. It was looked for {ranked}"
    assert 0 < text.index(said) < text.index("recall@10")


def test_the_first_page_tells_repeats_that_were_found_from_new_items(run):
    again = copy.deepcopy(run)
    again["evaluation"]["by_novelty"] = {"again": {"count": 1200, "recall@50": 0.625}, "new": {"count": 0}}
    said = "Among the first 50 were 62.5% of the 1,200 that the person had before."
    assert said in Page(render(again)).text
    again["evaluation"]["by_novelty"]["new"] = {"count": 7, "recall@50": 0.1}
    assert "before and 10.0% of the 7 that were new to the person." in Page(render(again)).text
    assert "that the person had before." not in Page(render(run)).text


def test_a_run_with_secret_noise_carries_no_stamp(run):
    real = copy.deepcopy(run)
    real["privacy"]["simulated"] = False
    assert "The noise is from a known seed" not in render(real)


def test_an_unbounded_run_shows_no_number_where_epsilon_would_stand(run):
    open_run = copy.deepcopy(run)
    for row in open_run["privacy"]["adversaries"]:
        row.update(epsilon=None, reason="no noise was added")
    for row in open_run["history"]:
        row["epsilon"] = None
    page = Page(render(open_run))
    assert "trained without a privacy bound" in page.text
    assert not re.search(r"(?i)epsilon (\(unit: user\) )?\d", page.text)
    assert page.text.lower().count("no bound") >= 12
    assert "Spent by round" not in page.text


def test_the_page_is_one_file_that_asks_the_network_for_nothing(html, page):
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert attrs.get(name, "#").startswith("#")
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) == {"http://www.w3.org/1999/xlink"}


def test_ids_are_unique_and_every_reference_has_its_target(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        for name in ("href", "xlink:href", "aria-labelledby"):
            if name in attrs:
                assert attrs[name].lstrip("#") in ids
        for reference in re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in attrs.values())):
            assert reference in ids


def test_every_picture_speaks_and_has_its_numbers_in_a_table(page, run):
    pictures = page.all("svg")
    assert len(pictures) == 7
    spoken = " ".join(p["aria-label"] for p in pictures)
    assert all(p["role"] == "img" for p in pictures)
    assert "this run 0.352" in spoken and "EASE, recent first 0.482" in spoken
    assert "recall@50 from 0.200 to 0.361" in spoken
    assert "released-model, network from 1.414 to 8.000" in spoken
    assert "decile 1: training 41.2%, shown 50.2%" in spoken
    assert "rounds: 9.4 MB up, 12.9 MB down" in spoken
    assert f"{run['history'][7]['recall@10']:.4f}" in page.text


def test_tables_have_headers_for_screen_readers(page):
    assert len(page.all("table")) >= 12
    assert all(attrs["scope"] in ("col", "row") for attrs in page.all("th"))


def test_bars_are_as_long_as_their_values(html, run):
    svg = re.search(r'<svg [^>]*aria-label="recall@50:.*?</svg>', html, re.DOTALL)[0]
    lengths = sorted(
        float(right) - float(left)
        for left, right in re.findall(
            r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n[^"]*"[^>]*style="fill: var\(--(?:q|series-1)',
            svg,
        )
    )
    values = sorted([run["metrics"]["recall@50"], *(b["recall@50"] for b in run["baselines"].values())])
    assert len(lengths) == len(values)
    assert [x / lengths[-1] for x in lengths] == pytest.approx([v / values[-1] for v in values], abs=1e-4)


def test_hostile_texts_are_escaped_everywhere(run):
    bad = '<script>alert("x")</script>$\\frac$&amp;'
    hostile = copy.deepcopy(run)
    hostile["dataset"]["name"] = bad
    hostile["dataset"]["cleaning"] = {bad: bad}
    hostile["config"] = {bad: {bad: bad}}
    hostile["baselines"][bad] = {k: v * 2 for k, v in hostile["baselines"]["ease"].items()}
    hostile["ablation"][bad] = hostile["ablation"]["full run"]
    hostile["communication"]["stages"][0]["name"] = bad
    hostile["privacy"]["adversaries"][0]["reason"] = bad
    hostile["history"] = [{"round": 0, "epsilon": {bad: 1.0}}]
    hostile["groups"]["gender"]["users"] = {bad: 1}
    text = render(hostile)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(bad) >= 9


def test_the_same_run_gives_the_same_bytes(tmp_path, run, html):
    write_report(run, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text() == html
    assert not re.search(r"20\d\d-\d\d-\d\d", html)


def test_a_run_of_the_bare_contract_is_enough(run):
    optional = ("long_tail", "ablation", "leak_probe", "groups", "index")
    bare = {key: value for key, value in copy.deepcopy(run).items() if key not in optional}
    del bare["dataset"]["cleaning"], bare["communication"]["stages"]
    bare["history"], bare["baselines"] = [], {"ease": None}
    page = Page(render(bare))
    assert len(page.all("svg")) == 3
    assert not {"tail", "groups"} & {attrs.get("id") for _, attrs in page.tags}


def test_an_epsilon_is_never_rounded_down():
    assert words.round_up(7.99941) == "8.000"
    assert words.round_up(1.0001) == "1.001"
    assert words.round_up(8.0) == "8.000"
    assert words.round_up(0.1 + 0.2) == "0.300"


def test_sizes_and_times_are_spelled_for_people():
    assert [words.size(n) for n in (0, 999, 1000, 12_345, 999_960, 2.5e9)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 kB",
        "1.0 MB",
        "2.5 GB",
    ]
    assert [words.duration(s) for s in (3.21, 187.3, 7260)] == ["3.2 s", "3 min 7 s", "2 h 1 min"]


LIMITED = {
    "name": "rounds",
    "sampling": "limited",
    "sample_rate": 0.25,
    "noise_multiplier": 4.0,
    "clip_norm": 0.5,
    "steps": 12,
    "participations": 3,
    "min_gap": 4,
    "bands": 3,
    "min_survivors": 40,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sample_rate": 1.0, "sampling": "everyone"}, "everyone"),
        ({"sampling": "poisson"}, "each by an independent secret coin of probability 0.25"),
        ({"sampling": "fixed_size"}, "a secret uniform subset of fixed size, 0.25 of the devices"),
        ({}, "devices in turn, 0.25 of them a round: each at most 3 times, 4 rounds apart"),
    ],
)
def test_each_sampler_is_said_in_words(change, said):
    assert words.sampler(LIMITED | change) == said


def test_a_mechanism_of_the_bare_contract_claims_no_sampler():
    bare = {"name": "rounds", "sample_rate": 0.25, "noise_multiplier": 4.0, "clip_norm": 0.5, "steps": 12}
    assert words.sampler(bare) == "0.25" and words.settings(bare) == []
    assert words.sum_noise(bare) == 2.0 and words.sum_noise(bare | {"clip_norm": None}) is None


def test_a_plan_that_renews_says_what_many_windows_amount_to(run):
    """Every kind of mechanism through the section of run.json that a run writes, and onto the page."""
    start = Mechanism(name="popularity", noise_multiplier=9.0, clip_norm=1.0)
    clip = AdaptiveClip(quantile=0.6, share=0.1)
    rounds = Mechanism(name="rounds", noise_multiplier=20.0, clip_norm=0.5, steps=8, adaptive_clip=clip)
    fields = {"unit": "user", "trust": "central", "delta": 1e-5, "devices": 100}
    renewing = copy.deepcopy(run)
    section = privacy_section(Plan(**fields, mechanisms=(start, rounds), renews="week"), {"items": 3})
    renewing["privacy"] = section
    dumps(section)
    mu = math.hypot(1 / 9.0, math.sqrt(8) / 20.0)
    for windows in (1, 12):
        row = section["windows"][str(windows)][0]
        assert row["epsilon"] == pytest.approx(gaussian_epsilon(mu * math.sqrt(windows), 1e-5), abs=1e-3)
    page = Page(render(renewing))
    assert "Every week (UTC) the releases start again" in page.text
    assert "epsilon after 1 window epsilon after 12 windows" in page.text
    assert words.round_up(section["windows"]["12"][0]["epsilon"]) in page.text
    # the sum has 0.9 of mu^2, the count, whose sensitivity is 1/2, has 0.1
    assert words.sum_noise(section["mechanisms"][1]) == pytest.approx(0.5 * 20.0 / math.sqrt(0.9))
    assert f"noise of standard deviation {0.5 * 20.0 / math.sqrt(0.1):.3g}" in page.text
    assert "the clip follows the 0.6 quantile" in page.text


def test_a_limited_plan_says_turns_bands_and_void_rounds(run):
    limited = copy.deepcopy(run)
    mechanism = Mechanism(**LIMITED, adjacency="zero_out")
    plan = Plan(unit="user", trust="central", delta=1e-5, devices=160, mechanisms=(mechanism,))
    limited["privacy"] = privacy_section(plan, {})
    assert {"name", "sample_rate", "noise_multiplier", "clip_norm", "steps"} <= set(limited["privacy"]["mechanisms"][0])
    text = Page(render(limited)).text
    for part in (
        "devices in turn, 0.25 of them a round: each at most 3 times, 4 rounds apart",
        "mixed with that of the 2 before it",
        "void below 40 contributions",
        "sending zeros instead of its contributions",
    ):
        assert part in text
    assert "windows" not in limited["privacy"] and "The budget renews" not in text


def test_the_picture_of_a_plan_names_adversaries_and_where_each_mechanism_begins():
    start = Mechanism(name="popularity", noise_multiplier=3.0, clip_norm=1.0)
    rounds = Mechanism(name="rounds", noise_multiplier=8.0, clip_norm=0.5, steps=8)
    plan = Plan(unit="interaction", trust="local", delta=1e-5, devices=9, mechanisms=(start, rounds), renews="month")
    curves = spending(plan)
    assert set(curves) == {"released-model", "server", "network"} and marks(plan) == {"popularity": 1, "rounds": 2}
    assert [count for count, _ in curves["server"]] == list(range(1, 10))
    svg = spending_svg(plan, curves)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and root[0].text.startswith("Epsilon by release at delta 1e-5 in one month")
    assert "released-model," in svg and "popularity" in svg
    assert svg == spending_svg(plan, spending(plan))
    assert set(re.findall(r"https?://[^\s\"'<]+", svg)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_intervals_are_drawn_a_row_a_name_and_say_the_same_each_time() -> None:
    one, two = Interval(value=0.7, low=0.6, high=0.8), Interval(value=0.5, low=0.51, high=0.52)
    panels = {"a set": {"first <b>": {"open": one, "private": two}}, "another": {"second": {"open": one}}}

    def draw() -> str:
        return str(interval_chart(panels, key="k", alt="what it says", x_label="AUC", chance=0.5))

    svg = draw()
    assert svg == draw() and 'aria-label="what it says"' in svg
    for text in ("a set", "another", "first &lt;b&gt;", "second", "open", "private", "AUC"):
        assert f">{text}</text>" in svg, text
    assert "<b>" not in svg
