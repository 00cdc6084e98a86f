from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from factory import SCRATCH, make_plugin, make_run

from xferbench.core.sections import replace_flat
from xferbench.plugins import negative_transfer
from xferbench.report import figure_cache, figures, html, tables

RUN = make_run(seeds=2, examples=20)
GROUPS = tables.finding_groups(RUN)
PLUGINS = {
    "negative-transfer": replace(negative_transfer.plugin, contrasts=(SCRATCH,)),
    "batchnorm-drift": make_plugin("batchnorm-drift", picture=lambda axes, _: axes.plot([1, 2])),
}


@pytest.fixture
def drawings(monkeypatch):
    """Return a list of the labels of all figures that are drawn instead of read from the cache."""
    labels, inline = [], figures.svg.inline_svg

    def record_label(draw, label, **options):
        labels.append(label)
        return inline(draw, label, **options)

    monkeypatch.setattr(figures.svg, "inline_svg", record_label)
    return labels


def test_a_second_page_is_equal_and_draws_only_plots_of_other_packages(tmp_path, drawings):
    first = html.render(RUN, PLUGINS, tmp_path)
    assert len(drawings) == 8
    drawings.clear()
    assert html.render(RUN, PLUGINS, tmp_path) == first == html.render(RUN, PLUGINS)
    assert drawings[:1] == ["Plot of batchnorm-drift: Does it hurt?"]
    assert len(drawings) == 1 + 8  # the last page had no folder


def test_a_changed_number_is_drawn_again(tmp_path, drawings):
    html.render(RUN, PLUGINS, tmp_path)
    drawings.clear()
    finding = replace_flat(RUN.findings[0], control_harm=RUN.findings[0].control.harm + 1e-12)
    html.render(replace(RUN, findings=(finding, *RUN.findings[1:])), PLUGINS, tmp_path)
    assert any(label.startswith("Harm by check") for label in drawings)
    assert any(label.startswith("Plot of negative-transfer") for label in drawings)


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-1], lambda data: data[:200] + b"!" + data[201:], lambda data: b"\xff" * 300],
)
def test_a_damaged_file_is_drawn_again(tmp_path, damage):
    figure = figures.draw_benefit_retained(GROUPS, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert figures.draw_benefit_retained(GROUPS, tmp_path) == figure


def test_a_folder_that_is_not_writable_is_ignored(tmp_path):
    (tmp_path / "file").write_text("")
    assert figure_cache.cached_figure(tmp_path / "file" / "folder", 1, lambda: "drawn") == "drawn"


def test_content_without_a_key_is_drawn_each_time(tmp_path):
    assert figure_cache.cached_figure(tmp_path, object(), lambda: "first") == "first"
    assert figure_cache.cached_figure(tmp_path, object(), lambda: "second") == "second"
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_key_still_has_a_page(tmp_path, drawings):
    run_without_key = replace_flat(RUN, environment={"when": object()})
    html.render(run_without_key, PLUGINS, tmp_path)
    drawings.clear()
    html.render(run_without_key, PLUGINS, tmp_path)
    assert [label.partition(":")[0] for label in drawings] == [
        "Plot of batchnorm-drift",
        "Plot of negative-transfer",
    ]


def test_other_code_has_other_keys(tmp_path, monkeypatch):
    assert figure_cache.cached_figure(tmp_path, 1, lambda: "old") == "old"
    monkeypatch.setattr(figure_cache, "_code_key", lambda: "edited")
    assert figure_cache.cached_figure(tmp_path, 1, lambda: "new") == "new"


DIFFERENT = [
    1, 1.0, True, "1", None, (1,), ((1,), 2), (1, 2), {"1": 1}, {1: "1"}, np.array([1]), np.array([1.0]), np.array([[1]]),
    np.array(["1"]), np.array([]), "", (), ("", ""), 0.1, 0.1 + 1e-17 * 2, float("nan"), RUN.findings[0],
]  # fmt: skip


def test_different_contents_have_different_keys():
    assert len({figure_cache.figure_digest(value) for value in DIFFERENT}) == len({*map(repr, DIFFERENT)})
    assert figure_cache.figure_digest(np.arange(2000.0)) != figure_cache.figure_digest(
        np.arange(2000.0) + (np.arange(2000) == 1000)
    )
    assert figure_cache.figure_digest(np.float32(0.1)) != figure_cache.figure_digest(np.float64(np.float32(0.1)))
    assert figure_cache.figure_digest(RUN) == figure_cache.figure_digest(make_run(seeds=2, examples=20))


def test_only_plain_functions_of_this_package_are_package_functions():
    assert figure_cache.is_package_function(negative_transfer.plot)
    assert not figure_cache.is_package_function(make_run)
    assert not figure_cache.is_package_function(lambda *_: None)
    assert not figure_cache.is_package_function(str)


def test_the_least_recently_used_figures_are_deleted_first(tmp_path):
    for age, name in enumerate("abc"):
        (tmp_path / name).write_bytes(b"0" * 10)
        os.utime(tmp_path / name, (100 + age, 100 + age))
    figure_cache.trim_cache(tmp_path, limit=20)
    assert {file.name for file in tmp_path.iterdir()} == {"b", "c"}
    figure_cache.trim_cache(tmp_path / "absent")
