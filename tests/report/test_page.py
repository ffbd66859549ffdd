"""The page: that it is whole, that nothing is cut off, and that it says what the files say."""

import dataclasses
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_records import BASELINE, LARGE, WARMED_UP, record, with_scales, write_folder

from tf_lbsgd import report
from tf_lbsgd.report import curves, page

RESULTS = Path(__file__).parents[2] / "results"
TITLES = re.compile(r"<figcaption><strong>([^<]*)")


def page_of(*runs, **settings) -> str:
    return page.page_of(report.group_into_cells(runs), "Runs", **settings)


@pytest.fixture(scope="module")
def two() -> str:
    runs = [record(r, s, [30.0, 20.0 + s]) for s in (0, 1) for r in (BASELINE, WARMED_UP)]
    paths = [f"/runs/kn{run.recipe['global_batch_size']}-seed{i}" for i, run in enumerate(runs)]
    named = [
        dataclasses.replace(with_scales(run, 2000.0, None), path=path)
        for run, path in zip(runs, paths, strict=True)
    ]
    return page_of(*named)


class Outline(HTMLParser):
    """Checks that elements are nested, and collects their names, identifiers and links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href") or "url(" in (value or ""):
                self.links.append(re.sub(r".*url\(([^)]*)\).*", r"\1", value))
        if tag not in ("meta", "html"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert tag == "html" or self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_else(two):
    outline = Outline(two)
    assert outline.open == []
    assert len(set(outline.ids)) == len(outline.ids)
    assert outline.links
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)
    assert not {"script", "link", "img"} & set(outline.names)


def test_every_picture_is_text_in_the_readers_colors_and_scales_with_the_page(two):
    figures = re.findall(r"<figure>.*?</figure>", two, re.DOTALL)
    titles = TITLES.findall(two)
    assert titles == [
        *("Error against epochs", "Error against updates", "Error against time", "Training loss"),
        *("Gradient noise scale", "Learning rate against updates", "Learning rate in the warmup"),
        "Throughput",
    ]
    for figure, title in zip(figures, titles, strict=True):
        assert re.search(r"<text [^>]*>(epoch|update|seconds)</text>", figure)
        assert "viewBox" in figure
        assert not re.search(r"<svg[^>]* (width|height)=", figure)
        assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r"url\(#\w+\)|href=\"#\w+\"", "", figure))
        assert {"var(--series-0)", "var(--series-1)", "var(--axis)"} <= set(
            re.findall(r"var\(--[\w-]+\)", figure)
        ), title


def test_both_themes_and_print_set_every_color(two):
    css = two[two.index("<style>") : two.index("</style>")]
    used = set(re.findall(r"var\((--[\w-]+)\)", two))
    assert {f"--series-{index}" for index in range(len(curves.COLORS))} <= set(
        re.findall(r"(--[\w-]+):", css)
    )
    for start in (":root", "@media (prefers-color-scheme: dark)", "@media print"):
        block = css[css.index(start) :].split("}")[0]
        assert used <= set(re.findall(r"(--[\w-]+):", block)), start
    light = dict(re.findall(r"--series-(\d): (#\w+)", css.split("}")[0]))
    assert tuple(light[str(index)] for index in range(len(light))) == curves.COLORS


def test_the_legend_names_every_run_once_in_its_color(two):
    legend = re.search(r'<ul class="legend few">.*?</ul>', two).group()
    assert re.findall(r"var\(--series-(\d)\)\"/></svg><strong>([^<]*)", legend) == [
        ("0", "kn32"),
        ("1", "kn1024"),
    ]


def test_the_headline_of_several_runs_has_a_row_for_each(two):
    table = re.search(r'<table class="results">.*?</table>', two).group()
    rows = [
        dict(re.findall(r'data-label="([^"]*)">([^<]*)', row)) for row in table.split("<tr>")[2:]
    ]
    assert [row["error"] for row in rows] == ["25.25 ± 0.35 %"] * 2
    assert rows[1] == {
        **{"error": "25.25 ± 0.35 %", "lowest error": "20.50 %", "best epoch": "2"},
        **{"kn": "1,024", "kn / noise scale": "-", "peak rate": "3.2", "epochs": "2"},
        **{"updates": "18", "duration": "20 s", "images/s": "1,000"},
    }
    assert table.count("epoch 2 of 90") == table.count("2 seeds") == 2
    assert "<td>global_batch_size</td><td>32</td><td>1024</td>" in two


def run_with_a_history(path):
    """A run folder whose workers were two at first, and that is complete."""
    recipe = dataclasses.replace(WARMED_UP, epochs=3)
    run = with_scales(record(recipe, 0, [30.0, 10.0, 20.0]), 2048.0, None, 4096.0)
    for epoch, workers in zip(run.metrics, (2, 2, 1), strict=True):
        epoch |= {"workers": workers, "ended_at": "2026-11-27T03:38:50+01:00", "seconds": 1300.0}
    run_folder = write_folder(path, run)
    run_folder.append_facts({"training images": "10000", "keras": "3.15.1 <or>"}, 0, [])
    (path / "attempt-3").mkdir()
    return run_folder


def test_the_headline_of_one_run_has_what_its_folder_says(tmp_path):
    run_folder = run_with_a_history(tmp_path / "my run")
    text = page_of(report.read_record(run_folder.path))
    tiles = dict(re.findall(r"<div><dt>([^<]*)</dt><dd>([^<]*)</dd></div>", text))
    recipe = {name: tiles.pop(name) for name in WARMED_UP.to_json()}
    assert (recipe["epochs"], recipe["global_batch_size"]) == ("3", "1024")
    assert tiles == {
        **{"error": "20.00 %", "lowest error": "10.00 %", "best epoch": "2", "kn": "1,024"},
        **{"kn / noise scale": "0.50", "peak rate": "3.2", "updates": "27"},
        **{"duration": "1 h 5 min", "images/s": "1,000", "attempts": "3"},
        **{"workers": "2, 1 from epoch 3"},
        **{"last epoch ended": "27 Nov 2026, 03:38 UTC+01:00"},
        **{"keras": html.escape("3.15.1 <or>"), "training images": "10000"},
    }
    assert (
        "<li>kn = 1,024 is 0.50 of the noise scale (2,048 images): below the limit. 2,048 should "
        "cost no accuracy. The rate was high for so few epochs that the scale may still grow.</li>"
    ) in text
    assert '<p class="note">my run </p>' in text  # no epoch is missing
    assert '<ul class="legend' not in text


def test_a_page_of_records_says_what_they_do_not():
    names = ("resnet8-kn128-seed0-92323bd0", "resnet8-kn2048-seed0-e5bda192")
    text = page_of(*(report.read_record(RESULTS / f"{name}.json") for name in names))
    assert all(text.count(f"<strong>{name}</strong>") == 3 for name in names)
    assert "kn = 128 is 0.47 of the noise scale (274 images): below the limit." in text
    assert "far above the limit, where the linear scaling rule fails." in text
    assert "Validation loss" in TITLES.findall(text)
    assert "<th>attempts</th>" not in text


def test_what_was_not_recorded_is_not_drawn():
    run = record(dataclasses.replace(BASELINE, global_batch_size=64), 0, [30.0])
    del run.metrics[0]["seconds"]
    run.recipe["a_field_of_old"] = 1
    assert TITLES.findall(page_of(run)) == [
        *("Error against epochs", "Error against updates", "Training loss", "Learning rate"),
        "Throughput",
    ]


def test_pictures_depend_on_the_runs_alone():
    first, second = (page_of(record(BASELINE, 0, [30.0, 20.0])) for _ in range(2))
    assert first == second
    assert page_of(record(BASELINE, 0, [30.0, 21.0])) != first


def test_names_and_titles_are_escaped(tmp_path):
    run = record(LARGE, 0, [30.0], path="/runs/<b>")
    other = record(BASELINE, 0, [30.0], path="/runs/a & b")
    cells = report.group_into_cells([run, other])
    written = report.write_report(cells, tmp_path / "page", "Warmup <or> not")
    text = written.read_text()
    assert text.count("Warmup &lt;or&gt; not") == 2
    assert "&lt;b&gt;" in text and "a &amp; b" in text and "<b>" not in text
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["index.html"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.4, "0 s"), (59.6, "1 min"), (60, "1 min"), (3599.7, "1 h"), (3720, "1 h 2 min")),
        *((86_399, "23 h 59 min"), (90_000, "1 d 1 h"), (7 * 86_400, "7 d")),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert page._duration(seconds) == text
