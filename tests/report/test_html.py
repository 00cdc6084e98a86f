from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from factory import SCRATCH, make_cells, make_findings, make_plugin, make_record, make_run

from xferbench.core.run import Finding, HarmEstimate, SampleImages, TrialRow
from xferbench.core.sections import replace_flat
from xferbench.report import figures, forest_plot, html, tables

HOSTILE = "a|b\n<script>alert(1)</script> $x^{$ \x1b[31m \"'>&"
VOID = {"meta", "br", "img", "path", "use", "rect"}


class Page(HTMLParser):
    """The elements of a page with their attributes; an element that is not closed is an error."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def draw_plot(axes, run):
    axes.plot([1, 2, 3], label="$a$ <b>")
    axes.set(yscale="log", title=f"{len(run.cells)} cells")
    axes.legend()


PLUGINS = {
    "batchnorm-drift": make_plugin("batchnorm-drift", question="Do statistics drift?", picture=draw_plot),
    "negative-transfer": make_plugin("negative-transfer", contrasts=(SCRATCH,)),
}


@pytest.fixture(scope="module")
def run():
    others = [
        Finding(
            id=f"p-{verdict.lower()}/harm",
            plugin=f"p-{verdict.lower()}",
            contrast="harm",
            verdict=verdict,
            reason=f"so {verdict}",
        )
        for verdict in ("INCONCLUSIVE", "ERROR", "SKIPPED")
    ]
    info = Finding(
        id="batchnorm-drift/restored",
        plugin="batchnorm-drift",
        contrast="restored",
        verdict="INFO",
        estimate=HarmEstimate(harm=-0.06, seeds=5),
    )
    return make_run(extra=(*others, info))


@pytest.fixture(scope="module")
def text(run):
    return html.render(run, PLUGINS)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_page_needs_no_other_file_and_no_script(page, text):
    assert not page.attributes("script")
    assert not page.attributes("link")
    references = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in {"src", "href", "xlink:href"}
    ]
    assert references
    assert all(value.startswith(("#", "data:")) for value in references)
    assert not re.search(r"url\((?!#)|@import", text)


def test_the_same_numbers_give_the_same_svg(run, text):
    assert forest_plot.draw_forest(tables.finding_groups(run)) in text
    assert figures.draw_plugin_plot(PLUGINS["batchnorm-drift"], run) in text


def test_the_page_has_the_headline_and_each_verdict_with_reason_and_patch(run, page):
    content = "".join(page.words)
    assert tables.headline(run) in content
    for phrase in (
        "FAIL",
        "PASS",
        "INCONCLUSIVE",
        "ERROR",
        "SKIPPED",
        "so ERROR",
        'batchnorm = "eval"',
        "Do statistics drift?",
        "0" * 64,
    ):
        assert phrase in content
    assert "xferbench run suites/careless.toml --output DIR" in content
    assert "at most 0.1 false FAILs" in content


def test_every_figure_has_a_text_alternative(page):
    labels = [item["aria-label"] for item in page.attributes("svg")]
    assert all(item["role"] == "img" for item in page.attributes("svg"))
    assert len(labels) == len(set(labels)) == 7
    harm = next(label for label in labels if label.startswith("Harm by check"))
    assert "batchnorm-drift FAIL +" in harm
    assert "negative-transfer PASS" in harm


def test_every_referenced_id_exists_once(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = [
        value[1:] for _, attributes in page.elements for name, value in attributes.items() if name in {"href", "xlink:href"}
    ]
    references += [
        item
        for _, attributes in page.elements
        for value in attributes.values()
        for item in re.findall(r"url\(#(.+?)\)", value or "")
    ]
    assert set(references) <= set(ids)


def test_figures_use_the_colors_of_the_page(text):
    picture = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): #\w+", picture)
    variables = set(re.findall(r"var\((--\w+)\)", picture))
    light_colors, dark_colors, print_colors = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)
    for values in (light_colors, dark_colors, print_colors):
        assert variables <= set(re.findall(r"(--\w+):", values))


def test_hostile_names_do_not_break_the_page(run):
    cells = make_cells(HOSTILE, {"subject": 0.7, "cured": 0.8, f"induced:{HOSTILE}": 0.5, "scratch": 0.4}, seeds=2)
    cells = [replace(cell, recipe=HOSTILE) for cell in cells]
    remedy = {"text": HOSTILE, "patch": [HOSTILE]}
    failures = make_findings(HOSTILE, "FAIL", cells, reason=HOSTILE, remedy=remedy, measures={HOSTILE: 1.0})
    info = Finding(
        id=HOSTILE, plugin=HOSTILE, contrast=HOSTILE, verdict="INFO", estimate=HarmEstimate(harm=0.1), reason=HOSTILE
    )
    suite = dict.fromkeys(("name", "path", "arch", "target", "weights"), HOSTILE)
    candidates = [{"recipe": HOSTILE, "validation": None, "chosen": True}, {"recipe": HOSTILE}]
    hostile_run = replace(
        run, suite=suite, findings=(*failures, info), cells=tuple(cells), arms={HOSTILE: {"subject": {"weighed": candidates}}}
    )
    hostile_run = replace_flat(
        hostile_run, environment={HOSTILE: {HOSTILE: HOSTILE}}, notes=(HOSTILE,), cost={"seconds": {HOSTILE: 1.0}}, plan=HOSTILE
    )
    samples = SampleImages(
        role=HOSTILE, title=HOSTILE, arms=(HOSTILE,), images=np.zeros((1, 4, 4, 3), np.uint8), labels=(HOSTILE,)
    )
    hostile_run = replace(hostile_run, samples=(samples,))
    text = html.render(
        hostile_run, {HOSTILE: make_plugin(HOSTILE, question=HOSTILE, picture=lambda axes, _: axes.set_title(HOSTILE))}
    )
    page = Page(text)
    assert not page.attributes("script")
    assert "<script" not in text
    assert "\x1b" not in text
    assert "could not be drawn" not in text
    assert text.count("$x^{$") > 10


def add_samples(run, **fields):
    images = np.random.default_rng(0).integers(256, size=(2, 8, 8, 3), dtype=np.uint8)
    images_of_target = SampleImages(role="target", title="birds", arms=("all others",), images=images, labels=("cat", "dog"))
    return replace(run, samples=(replace(images_of_target, **fields),))


def test_sample_images_have_their_classes_and_arms(run):
    page = Page(html.render(add_samples(run, arms=("drift: a", "subject")), {}))
    assert [(item["alt"], item["src"][:22]) for item in page.attributes("img")] == [
        ("cat", "data:image/png;base64,"),
        ("dog", "data:image/png;base64,"),
    ]
    content = "".join(page.words)
    assert "What the networks see" in content
    assert "drift: a; subject" in content


def test_a_page_without_samples_has_no_section_for_them(page):
    assert "What the networks see" not in "".join(page.words)


def test_a_failure_is_a_card_with_cause_next_action_and_verification(run):
    first = run.findings[0]
    drift = replace(
        PLUGINS["batchnorm-drift"], doc="Drift.\n\nCause\n    Layers in ``train`` mode\n    move.\n\nRemedy\n    No.\n"
    )
    content = " ".join("".join(Page(html.render(run, {"batchnorm-drift": drift})).words).split())
    assert "FAIL batchnorm-drift +" in content
    assert "Cause: Layers in train mode move.Next: keep the BatchNorm" in content
    assert "Verified: the cured arm was trained with these lines and passes." in content
    audited = html.render(replace(run, findings=(replace(first, kind="audit"),)), {})
    assert "Verified: the cured arm was served with these lines and passes." in " ".join("".join(Page(audited).words).split())
    for remedy, expected in (
        (
            dict(first.remedy) | {"verified": False},
            "Not verified: the cured arm was trained with these lines and is not shown to pass.",
        ),
        (None, "xferbench explain batchnorm-drift describes what usually helps"),
    ):
        content = " ".join(
            "".join(Page(html.render(replace(run, findings=(replace(first, remedy=remedy),)), {})).words).split()
        )
        assert expected in content


def many_plugins(verdicts):
    cells, findings = [], []
    for number, verdict in enumerate(verdicts):
        name = f"p-{number}"
        plugin_cells = make_cells(name, {"subject": 0.7, "cured": 0.8, "induced:x": 0.6, "scratch": 0.4}, seeds=2, examples=20)
        cells += plugin_cells
        findings += make_findings(name, verdict, plugin_cells)
    return {"cells": tuple(cells), "findings": tuple(findings)}


def test_a_page_with_many_plugins_has_contents_and_folds_passing_sections(run):
    page = Page(html.render(replace(run, **many_plugins(["FAIL", "PASS", "PASS", "INCONCLUSIVE"])), {}))
    assert len(page.attributes("nav")) == 1
    sections = [item for item in page.attributes("details") if item.get("class") == "plugin"]
    assert ["open" in item for item in sections] == [True, True, False, False]


def test_a_page_with_few_plugins_folds_nothing(page):
    assert not page.attributes("nav")
    assert all("open" in item for item in page.attributes("details") if item.get("class") == "plugin")


def test_the_table_has_the_range_of_the_induced_accuracies(run):
    cells = make_cells("p", {"subject": 0.7, "cured": 0.7, "induced:x": 0.6, "induced:y": 0.5, "scratch": 0.4}, seeds=2)
    findings = make_findings("p", "PASS", cells)
    page = html.render(replace(run, findings=findings, cells=tuple(cells)), {}, None)
    low, high = sorted(100 * finding.accuracy["induced"] for finding in findings)
    assert low < high
    assert f'data-name="Induced">{low:.1f} to {high:.1f} %</td>' in page
    assert ">Induced</th>" in page


def test_every_variant_has_a_row_with_its_name_below_its_plugin(run):
    cells = make_cells(
        "p", {"subject": 0.7, "cured": 0.8, "scratch": 0.4} | {f"induced:v{n}": 0.1 * n for n in range(8)}, seeds=2
    )
    picture = forest_plot.draw_forest(tables.finding_groups(replace(run, findings=make_findings("p", "FAIL", cells))))
    texts = re.findall(r">([^<>]+)</text>", picture)
    assert [item for item in texts if re.fullmatch(r"p|FAIL|your pipeline|v\d", item)] == [
        "p",
        "FAIL",
        "your pipeline",
        *(f"v{n}" for n in range(8)),
    ]


def test_a_harm_far_beyond_the_margin_keeps_the_margin_visible(run):
    finding = replace_flat(run.findings[0], harm=-0.9, low=-0.95, high=-0.85)
    low, high = forest_plot._axis_range([(finding,)], 100.0)
    assert low > -60
    assert high < 100 * 15 * 0.02 + 10


def test_assumptions_taken_on_trust_have_their_own_list(run):
    content = "".join(Page(html.render(replace(run, notes=("taken on trust: the mean", "other")), {})).words)
    assert "Taken on trust" in content
    assert "taken on trust: " not in content


def test_tick_labels_of_a_logarithmic_axis_are_numbers(text):
    assert "mathdefault" not in text


def test_a_crash_of_a_plot_is_shown_instead_of_the_plot(run):
    def crash(axes, run):
        raise KeyError("<gone>")

    picture = figures.draw_plugin_plot(make_plugin("batchnorm-drift", picture=crash), run)
    assert "could not be drawn: KeyError: &#x27;&lt;gone&gt;&#x27;" in picture


def test_a_figure_with_many_lines_becomes_an_image(run):
    def draw_many_lines(axes, run):
        for number in range(500):
            axes.plot(np.arange(60), np.arange(60) * number % 7)

    figure = figures.draw_plugin_plot(make_plugin("p", picture=draw_many_lines), run)
    assert figure.startswith('<img alt="Plot of p: Does it hurt?" src="data:image/png;base64,')


@pytest.mark.parametrize(
    "draw",
    [
        lambda axes, _: axes.pcolormesh(np.arange(40_000.0).reshape(200, 200)),
        lambda axes, _: axes.scatter(np.arange(5000), np.arange(5000) % 7, label="points"),
    ],
)
def test_heat_maps_and_point_clouds_are_images_within_the_figure(run, draw):
    figure = figures.draw_plugin_plot(make_plugin("p", picture=draw), run)
    assert figure.startswith("<svg")
    assert 'xlink:href="data:image/png;base64,' in figure
    assert len(figure) < figures.MAX_SVG_CHARACTERS


def test_a_missing_plugin_lacks_only_its_plots(run):
    text = html.render(replace(run, findings=run.findings[:2]), {"batchnorm-drift": None})
    assert "This plugin is not installed here" in text
    assert "Paired differences" not in text
    assert "Learning curves" in text


def test_an_empty_run_has_a_page(run):
    empty_run = replace_flat(run, findings=(), cells=(), cost={}, arms={}, environment={}, notes=(), plan="", suite={})
    content = "".join(Page(html.render(empty_run, {})).words)
    assert "There is no verdict." in content


def test_missing_numbers_are_not_drawn(run):
    finding = replace_flat(
        run.findings[0], low=None, high=None, benefit_retained=None, control_harm=None, accuracy={}, margin=None
    )
    page = Page(html.render(replace(run, findings=(finding,), cells=()), PLUGINS))
    assert [item["aria-label"].partition(":")[0] for item in page.attributes("svg")] == [
        "Harm by check with its bounds, in points of accuracy"
    ]


@pytest.mark.parametrize(("value", "expected"), [(-3.0, "-300 %"), (0.82, "82 %"), (2.0, "200 %")])
def test_a_benefit_beyond_the_axis_is_drawn_at_the_edge_with_its_value(run, value, expected):
    picture = figures.draw_benefit_retained([(replace(run.findings[0], benefit_retained=value),)])
    assert f">{expected}<" in picture


def test_findings_without_numbers_have_no_figure():
    groups = [(Finding(id="p/harm", plugin="p", contrast="harm", verdict="ERROR"),)]
    assert (
        forest_plot.draw_forest(groups)
        == figures.draw_benefit_retained(groups)
        == figures.draw_paired([], 0.02, "accuracy")
        == figures.draw_learning_curves({})
        == ""
    )


def test_learning_curves_that_diverged_are_drawn_on_a_logarithmic_axis(run):
    curve = ((0, 2.3, 0.1), (10, 1e30, 0.1), (20, float("nan"), 0.1))
    cell = TrialRow(
        plugin="p",
        arm="subject",
        variant="",
        view="test",
        seed=0,
        recipe="",
        record=replace(make_record("k", 0.1), curve=curve),
    )
    picture = figures.draw_learning_curves(tables.learning_curves(replace(run, cells=(cell,)), "p"))
    assert "1e+30" in picture or "1e+2" in picture


def test_the_size_of_a_page_of_twenty_plugins_stays_below_the_limit(run):
    cells = make_cells(
        "p", {"subject": 0.7, "cured": 0.8, "induced:x": 0.6, "induced:y": 0.5, "scratch": 0.4}, seeds=20, examples=40
    )
    run = replace(run, cells=tuple(cells), findings=make_findings("p", "FAIL", cells))
    assert 20 * len(html.render(run, {"p": make_plugin("p")}).encode()) < 3_000_000


EVIDENCE = {
    "hash": "c" * 64,
    "begun": "2026-01-02T03:04:05Z",
    "ended": "2026-01-02T03:05:05Z",
    "inputs": [{"key": "target.data", "given": HOSTILE, "digest": "d" * 64, "files": 3, "bytes": 9}],
    "repair": {"said": "repaired: x.safetensors", "sha256": "a" * 64},
}


def test_the_page_has_plan_and_inputs_and_claims_no_compliance():
    content = " ".join(Page(html.render(make_run(seeds=2, examples=20, evidence=EVIDENCE), {})).words)
    assert "c" * 64 in content
    assert "d" * 16 + "…" in content
    assert "d" * 17 not in content
    assert "The plan was not frozen before the run." in content
    assert "This report claims no compliance with any standard." in content
    assert "repaired: x.safetensors" in content
    frozen = {"hash": "c" * 64, "written": "2026-01-01T00:00:00Z", "file": "b" * 64}
    content = " ".join(Page(html.render(make_run(seeds=2, examples=20, evidence=EVIDENCE, frozen=frozen), {})).words)
    assert re.search(r"The run follows the plan that was frozen on\s+2026-01-01T00:00:00Z", content)


def test_the_block_for_signatures_is_empty_and_only_printed():
    page = html.render(make_run(seeds=2, examples=20, evidence=EVIDENCE), {})
    style = page.partition("<style>")[2].partition("</style>")[0]
    screen_style, _, print_style = style.rpartition("@media print {")
    assert ".signatures { display: none; }" in screen_style
    assert ".signatures { display: grid;" in print_style
    block = page.partition('<div class="signatures">')[2].partition("</section>")[0]
    assert re.findall(r"<dt>(\w+)</dt><dd></dd>", block) == 2 * ["Name", "Role", "Date", "Signature"]


def test_a_run_without_evidence_has_no_section_for_it(text):
    assert 'id="evidence"' not in text
    assert "signatures" not in text.partition("</style>")[2]
