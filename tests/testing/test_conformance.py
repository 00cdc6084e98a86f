"""The conformance kit: the installed plugins conform, and a broken plugin gets a clear message."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from xferbench.core.interventions import PRETRAINED, RANDOM, CuedSource, Regularizer, TrainModeByClass
from xferbench.core.pipeline import Data, Phase, Recipe, Selection
from xferbench.core.plugin import HARM, Contrast, Plugin
from xferbench.core.sections import flat_values
from xferbench.runner import discovery
from xferbench.testing import conformance, conforms, fake_lab

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = discovery.load_plugins(["all"])
PAGE = """Heat.

Symptom
    It is hot.

Cause
    A rate.

Remedy
    Another one.

References
    A paper.
"""


def scale_lr(pipeline, factor):
    phases = tuple(replace(phase, lr=phase.lr * factor) for phase in pipeline.recipe.phases)
    return replace(pipeline, recipe=replace(pipeline.recipe, phases=phases))


def always_applies(pipeline, profile):
    return ""


def lower_rates(pipeline, profile):
    return Selection(candidates=(scale_lr(pipeline, 0.3), scale_lr(pipeline, 0.1)))


def raise_rate(pipeline, profile):
    return {"x30": scale_lr(pipeline, 30.0)}


def measure_heat(context):
    return {"heat": 1.0}


GOOD_PLUGIN = Plugin(
    id="too-hot",
    version=1,
    question="Is it too hot?",
    doc=PAGE,
    applies=always_applies,
    cure=lower_rates,
    induce=raise_rate,
    remedy="lower the learning rate",
)
CHECKS_OF_PLUGIN = tuple(check for check in conformance.CHECKS if check is not conformance.check_import)


@pytest.fixture
def tests_importable(monkeypatch):
    """Let other processes import the modules of this folder."""
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.id)
def test_every_installed_plugin_conforms(plugin, check):
    check(plugin)


def test_a_good_plugin_conforms(tests_importable):
    conforms(GOOD_PLUGIN)


def test_the_plugin_of_the_contributing_guide_conforms(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    source = next(text for text in blocks if "plugin = Plugin(" in text)
    (tmp_path / "kit_of_contributing.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import kit_of_contributing

    plugin = kit_of_contributing.plugin
    # The guide shows an outline of a page.
    missing = [name for name in conformance.PAGE_HEADINGS if f"\n{name}\n" not in plugin.doc]
    conforms(replace(plugin, doc=plugin.doc + "".join(f"\n{name}\n    Words.\n" for name in missing)))


# Broken plugins and the messages about them


def make_impure_cure():
    counter = iter(range(10**6))
    return lambda pipeline, profile: scale_lr(pipeline, 1.0 + next(counter))


def crash(*_):
    raise KeyError("on purpose")


def refuse_every_pipeline(pipeline, profile):
    return "not today"


def change_the_data(pipeline, profile):
    return {"x30": replace(pipeline, data=replace(pipeline.data, target=Data(digest="other")))}


def cure_among(candidates, **fields):
    return lambda pipeline, profile: Selection(candidates=candidates(pipeline), **fields)


def make_exact_contrast(**fields):
    return Contrast(name="e", kind="exact", weights={("subject", "heat"): 1.0}, **fields)


HEAT_MEASURE = {"measures": {"heat": f"{__name__}:measure_heat@1"}}
BROKEN_PLUGINS = {
    "an id in capitals": ({"id": "Too_Hot"}, r"id\n  found: Too_Hot\n  expected: lower-case words with hyphens"),
    "no version": ({"version": 0}, "version\n  found: 0"),
    "no question": ({"question": "Too hot."}, "question\n  found: Too hot.\n  expected: one that ends with a question mark"),
    "a question of two lines": ({"question": "Too\nhot?"}, "question\n  found: 'Too.*\n  expected: one line"),
    "no remedy": ({"remedy": ""}, "remedy\n  found: ''\n  expected: one line"),
    "no page": ({"doc": None}, "doc\n  found: no Symptom, Cause, Remedy, References"),
    "half a page": ({"doc": PAGE.replace("Cause\n", "Because\n")}, "doc\n  found: no Cause\n"),
    "an empty heading": ({"doc": PAGE.replace("    A paper.\n", "")}, "doc\n  found: no References"),
    "a measure without a version": (
        {"measures": {"heat": "os:sep"}},
        "measure heat\n  found: os:sep\n  expected: module:function@",
    ),
    "a measure that is not there": ({"measures": {"heat": "os:no_such@1"}}, "measure heat\n  found: no function no_such in os"),
    "a measure with a view's name": (
        {"measures": {"test": f"{__name__}:measure_heat@1"}},
        "measure test\n  found: a view of that name",
    ),
    "no contrast": ({"contrasts": ()}, "contrasts\n  expected: one or more"),
    "two of one name": ({"contrasts": (HARM, HARM)}, "contrasts\n  found: harm, harm"),
    "measurements alone": ({"contrasts": (replace(HARM, kind="info"),)}, "found: only measurements"),
    "a kind that is not known": ({"contrasts": (HARM, replace(HARM, name="x", kind="pared"))}, "did you mean 'paired'"),
    "a view that is not known": (
        {"contrasts": (replace(HARM, weights={("cured", "tests"): 1.0, ("subject", "tests"): -1.0}),)},
        "contrast harm\n  found: view tests\n  expected: a view: did you mean 'test'",
    ),
    "an invariant that is not measured": (
        {"contrasts": (make_exact_contrast(),)},
        "found: view heat\n  expected: a measure of the plugin",
    ),
    "an arm that is not known": (
        {"contrasts": (replace(HARM, weights={("induced:x30", "test"): 1.0, ("subject", "test"): -1.0}),)},
        "found: arm induced:x30\n  expected: subject or cured or scratch\n  do: name the subject: in the control",
    ),
    "no subject": (
        {"contrasts": (replace(HARM, weights={("scratch", "test"): 1.0, ("scratch", "validation"): -1.0}),)},
        "contrast harm\n  found: no subject or cured",
    ),
    "weights that are no difference": (
        {"contrasts": (replace(HARM, weights={("cured", "test"): 1.0, ("subject", "test"): -0.5}),)},
        "found: weights that sum to 0.5\n  expected: 0: if all arms are equal there is no harm",
    ),
    "weights of nothing": ({"contrasts": (replace(HARM, weights={("subject", "test"): 0.0}),)}, "expected: numbers, not all 0"),
    "never to be asked": ({"applies": refuse_every_pipeline}, "applies\n  found: a reason to skip every pipeline"),
    "applies that says yes": (
        {"applies": lambda *_: True},
        "applies of full fine-tuning\n  found: True\n  expected: the reason",
    ),
    "a cure that crashes": (
        {"cure": crash},
        "cure of full fine-tuning crashes\n  found: KeyError: 'on purpose'\n  do: return the reason in applies",
    ),
    "a cure of another mind": (
        {"cure": make_impure_cure()},
        "found: another result the second time\n  expected: a pure function",
    ),
    "a cure that is a recipe": ({"cure": lambda *_: Recipe()}, "found: Recipe\n  expected: a Pipeline or a Selection"),
    "a cure without an end": ({"cure": lambda p, _: scale_lr(p, 0.5)}, "cure of full fine-tuning\n  found: curing twice"),
    "a choice of nothing": ({"cure": cure_among(lambda p: (p,))}, "found: a selection without an alternative"),
    "chosen by test images": (
        {"cure": cure_among(lambda p: (scale_lr(p, 0.3),), by="test")},
        "found: selected by test\n  expected: known: shifted-held-out, source-held-out, validation",
    ),
    "another dataset": (
        {"induce": change_the_data},
        "induced x30 of full fine-tuning\n  found: another backbone, data or size",
    ),
    "a cure of another belief": (
        {"cure": lambda p, _: replace(p, expected_training=Recipe())},
        "cure of full fine-tuning\n  found: another backbone, data or size",
    ),
    "a variant with a slash": ({"induce": lambda p, _: {"x/30": scale_lr(p, 30.0)}}, "induced x/30 of .*\n  found: x/30"),
    "a failure that is the cure": ({"induce": lambda p, _: {"x30": p}}, "found: the cured pipeline itself"),
    "a recipe that no suite can ask for": (
        {"cure": cure_among(lambda p: (replace(p, recipe=Recipe(phases=(Phase(steps=5, warmup=9),))),))},
        r"no suite file can express it\n(.|\n)*expected: fewer than the 5 steps of a phase\n  do: correct \[recipe\] warmup",
    ),
    "an induced recipe that no suite can ask for": (
        {"induce": lambda p, _: {"x30": replace(p, recipe=replace(p.recipe, augment="flip+cropp"))}},
        r"induce of full fine-tuning crashes\n  found: TypeError: augment is 'flip.cropp'; .*\n  do: correct the function",
    ),
    "an induced choice with one that no suite can ask for": (
        {"induce": lambda p, _: {"x30": Selection(candidates=(scale_lr(p, 30.0), scale_lr(p, -1.0)), worst=True)}},
        r"induced x30 of full fine-tuning: no suite file can express it\n(.|\n)*recipe\] lr",
    ),
    "a mode that is no value": (
        {"induce": lambda p, _: {"x30": replace(p, serving=replace(p.serving, mode="training"))}},
        r"induce of full fine-tuning crashes\n  found: TypeError: mode is 'training'; expected a value of ServingMode",
    ),
    "an extra arm that no suite can ask for": (
        {"extra_arms": lambda p, _: {"wrong": replace(p, recipe=Recipe(phases=(Phase(steps=5, warmup=9),)))}},
        "extra arm wrong of full fine-tuning: no suite file can express it",
    ),
    "a source where there is none": (
        {"contrasts": (replace(HARM, weights={("subject", "source-before"): 1.0, ("subject", "source"): -1.0}),)},
        r"too-hot/harm of no \[source\]\n(.|\n)*do: return the reason in applies",
    ),
    "numbers that crash": (
        {"derived_metrics": crash},
        "too-hot/harm/x30 of full fine-tuning\n.*the plugin's measures: KeyError",
    ),
    "rehearsal without a source": (
        {"cure": cure_among(lambda p: (replace(p, recipe=replace(p.recipe, regularizer=Regularizer.parse("replay:4"))),))},
        "found: .*recipe|source|regularizer",
    ),
    "a picture that crashes": ({"plot": crash}, "plot\n  found: .*could not be drawn: KeyError"),
}


@pytest.mark.parametrize("name", BROKEN_PLUGINS)
def test_a_broken_plugin_is_refused_with_a_clear_message(name):
    change, pattern = BROKEN_PLUGINS[name]
    with pytest.raises(AssertionError) as error:
        any(check(replace(GOOD_PLUGIN, **change)) for check in CHECKS_OF_PLUGIN)
    assert re.search(pattern, str(error.value)), error.value


def test_a_module_is_no_plugin():
    with pytest.raises(AssertionError, match="this is not a plugin\n  found: module\n"):
        conforms(ModuleType("too_hot"))


def test_a_measured_exact_contrast_conforms(tests_importable):
    conforms(replace(GOOD_PLUGIN, contrasts=(HARM, make_exact_contrast()), **HEAT_MEASURE))


def test_an_induced_arm_may_have_an_expected_training(tests_importable):
    def induce_against_expected(pipeline, profile):
        return {"x30": replace(scale_lr(pipeline, 30.0), expected_training=pipeline.recipe)}

    conformance.check_arms(replace(GOOD_PLUGIN, induce=induce_against_expected))


def test_an_induced_arm_may_be_served_in_train_mode_by_class():
    conformance.check_arms(
        replace(GOOD_PLUGIN, induce=lambda p, _: {"by-class": replace(p, serving=replace(p.serving, mode=TrainModeByClass()))})
    )


def test_an_extra_arm_may_have_its_own_size_and_be_a_selection():
    conformance.check_arms(
        replace(
            GOOD_PLUGIN,
            extra_arms=lambda p, profile: {
                "few": replace(p, data=replace(p.data, train_size=10)),
                "cool": lower_rates(p, profile),
            },
        )
    )


def test_a_module_that_imports_torch_at_its_top_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "kit_of_haste.py").write_text("import pandas\n\ndef applies(pipeline, profile):\n    return ''\n")
    import kit_of_haste

    with pytest.raises(AssertionError) as error:
        conformance.check_import(replace(GOOD_PLUGIN, applies=kit_of_haste.applies))
    assert "importing kit_of_haste imports pandas" in str(error.value) and "do: import it inside the functions" in str(
        error.value
    )


def test_a_function_of_a_module_that_cannot_be_imported_is_refused(tests_importable):
    def applies(pipeline, profile):
        return ""

    applies.__module__ = "kit_of_nowhere"
    with pytest.raises(AssertionError, match="module kit_of_nowhere cannot be imported alone\n  found: ModuleNotFoundError"):
        conformance.check_import(replace(GOOD_PLUGIN, applies=applies))


def test_the_scenarios_cover_all_kinds_of_pipelines():
    names = [scenario.name for scenario in fake_lab.scenarios()]
    assert len(set(names)) == len(names) > 12
    inits = {scenario.pipeline.recipe.init for scenario in fake_lab.scenarios()}
    assert inits == {PRETRAINED, RANDOM, CuedSource()}
    for field in ("batchnorm", "source", "shifted", "recorded"):
        assert {bool(flat_values(scenario.profile)[field]) for scenario in fake_lab.scenarios()} == {True, False}
