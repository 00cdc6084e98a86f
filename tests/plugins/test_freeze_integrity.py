"""What moved against what was believed, and why: each mistake planted by hand, then through the real laboratory."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import PLACE, READY, WEIGHTS
from torch import nn

from xferbench.core import files
from xferbench.core.interventions import BATCHNORM_EVAL, EVAL_MODE, HEAD_ONLY, RANDOM
from xferbench.core.pipeline import Backbone, Checkpoint, Phase, Pipeline, PipelineData, Recipe, Serving
from xferbench.core.strategies import adapter, bitfit, full, linear_probe, lora, lp_ft, partial
from xferbench.data import user_code
from xferbench.lab.data import preprocessing
from xferbench.lab.evaluation import freeze_check
from xferbench.lab.evaluation.context import MeasureContext
from xferbench.lab.models import backbones, checkpoint_reader
from xferbench.lab.training.network import Architecture
from xferbench.lab.worker import run_trials
from xferbench.plugins import freeze_integrity
from xferbench.plugins.freeze_integrity import plugin
from xferbench.plugins.freeze_report import change_by_layer, format_freeze_check, names_of_kind
from xferbench.study import trials
from xferbench.testing import fake_lab

CLASSES = 4


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Plain(nn.Module):
    """Without BatchNorm, with a parameter that nothing uses."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.lower = nn.Sequential(nn.Conv2d(12, 12, 3), nn.GroupNorm(3, 12), nn.ReLU())
        self.upper = nn.Sequential(nn.Conv2d(12, 12, 3), nn.GroupNorm(3, 12), nn.ReLU())
        self.spare = nn.Parameter(torch.ones(5))
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        return self.head(self.upper(self.lower(torch.relu(self.stem(x)))).mean((2, 3)))


def tiny():
    return backbones.build("tiny-resnet", CLASSES)


def tensors(module):
    return {name: one.detach().clone() for name, one in (*module.named_parameters(), *module.named_buffers())}


def pretrained():
    """A tiny ResNet with the shipped weights, and a head drawn anew."""
    torch.manual_seed(0)
    module = tiny()
    module.load_state_dict(
        {n: t for n, t in checkpoint_reader.read_checkpoint(Path(WEIGHTS.path)).items() if "linear" not in n}, strict=False
    )
    return module


def plain():
    torch.manual_seed(0)
    return Plain()


def trained(module, steps=6, *, mode="eval", lr=1e-2, optimizer=None, names=None):
    """A few steps of a plain loop, whatever mistakes went before; ``names`` are those that the optimizer is given."""
    images, labels = examples()
    held = [one for name, one in module.named_parameters() if names is None or name in names]
    optimizer = optimizer or torch.optim.SGD(held, lr=lr, momentum=0.9)
    module.train(mode == "train")
    for _ in range(steps):
        loss = nn.functional.cross_entropy(module(preprocessing.to_tensor(images, READY)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


def examples(count=64):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % CLASSES
    images = torch.randint(0, 60, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[torch.arange(count), :, 4 * labels, :] += 150
    return images, labels


def found(before, module, recipe, fresh=tiny, *, after=None):
    """What is found of a module that was trained, against a belief."""
    own = module.eval()
    images, labels = examples()
    network = Architecture(module=own, layout=backbones.layer_layout(own, 16), device=torch.device("cpu"), cache=Path())
    seen = MeasureContext(
        before=before,
        after=after or tensors(own),
        network=network,
        train_images=images,
        train_labels=labels,
        train_preprocessing=READY,
        test_images=images,
        test_labels=labels,
        preprocessing=READY,
        mode=EVAL_MODE,
        expected_training=recipe,
        build_random=fresh,
    )
    return freeze_integrity.integrity(seen)


def names(module, *prefixes):
    return {name for name, _ in module.named_parameters() if backbones.is_within(name, prefixes)}


HEAD, EVAL = {"linear.weight", "linear.bias"}, Phase(batchnorm=BATCHNORM_EVAL)
HEALTHY = {
    "a linear probe": (linear_probe(), ("linear",), "eval"),
    "full fine-tuning": (full(), ("",), "train"),
    "full with frozen statistics": (full(EVAL), ("",), "eval"),
    "partial": (partial(EVAL), ("linear", "layer4"), "eval"),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_did_as_was_believed_is_no_violation(name):
    recipe, held, mode = HEALTHY[name]
    module = pretrained()
    before = tensors(module)
    told_ = found(before, trained(module, mode=mode, names=names(module, *held)), recipe)
    assert told_["integrity"] == 0 and not names_of_kind(told_, "cause")
    assert all(value > 0 for key, value in told_.items() if key.startswith("trained/"))
    assert not any(value for key, value in told_.items() if key.startswith("frozen/"))


@pytest.mark.parametrize("held", [("head",), ("head", "upper"), ("",)])
def test_without_batchnorm_too_and_what_nothing_uses_need_not_move(held):
    module = plain()
    before = tensors(module)
    recipe = {1: linear_probe(), 2: partial()}.get(len(held)) if held != ("",) else full()
    assert found(before, trained(module, names=names(module, *held)), recipe, Plain)["integrity"] == 0


def test_what_next_to_nothing_depends_on_need_not_move():
    module = plain()
    before = tensors(module)
    module.upper[1].weight.register_hook(torch.zeros_like)  # an update that is lost in rounding
    trained(module)
    assert found(before, module, full(), Plain)["integrity"] == 1
    with torch.no_grad():
        module.head.weight *= 1e6  # beside the head's gradient that of all others is large, and the reverse
    assert found(before, module, full(), Plain)["integrity"] == 1
    with torch.no_grad():
        module.head.weight *= 1e-12
    assert found(before, module, full(), Plain)["integrity"] == 0


def test_statistics_that_moved_alone_are_told_by_layer_with_their_cause():
    module = pretrained()
    before = tensors(module)
    told_ = found(before, trained(module, names=HEAD, mode="train"), linear_probe())
    assert set(names_of_kind(told_, "buffer-moved")) == {name for name in before if "running" in name}
    assert not names_of_kind(told_, "frozen-moved") and names_of_kind(told_, "cause") == ["statistics"]
    assert told_["odd/steps in train mode"] == 6
    assert "BatchNorm stayed in train mode" in format_freeze_check(told_)


def test_statistics_that_a_belief_lets_move_are_a_note_only():
    module = pretrained()
    before = tensors(module)
    told_ = found(before, trained(module, names=HEAD, mode="train"), Recipe(phases=(Phase(trainable=HEAD_ONLY),)))
    assert told_["integrity"] == 0
    assert "BatchNorm statistics of frozen layers moved, which batchnorm = train allows: bn1" in format_freeze_check(told_)


def test_requires_grad_on_a_module_freezes_nothing():
    module = pretrained()
    before = tensors(module)
    module.requires_grad = False  # an attribute like any other
    for part in (module.layer1, module.layer2):
        part.requires_grad = False
    told_ = found(before, trained(module), linear_probe())
    assert set(names_of_kind(told_, "frozen-moved")) == names(module, "") - HEAD
    assert names_of_kind(told_, "cause") == ["nothing-frozen"]


def test_a_prefix_that_no_name_has_freezes_nothing_where_a_parameter_is_unused_too():
    module = plain()
    before = tensors(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad = not name.startswith("backbone.")
    told_ = found(before, trained(module), linear_probe(), Plain)
    assert set(names_of_kind(told_, "frozen-moved")) == names(module, "stem", "lower", "upper")
    assert names_of_kind(told_, "cause") == ["nothing-frozen"]


def test_a_group_that_the_optimizer_holds_is_named():
    module = pretrained()
    before = tensors(module)
    told_ = found(before, trained(module, names=names(module, "linear", "layer4")), linear_probe())
    assert set(names_of_kind(told_, "frozen-moved")) == names(module, "layer4")
    assert names_of_kind(told_, "cause/group") == [
        "layer4"
    ] and "likely cause: the optimizer holds layer4" in format_freeze_check(told_)


def test_norms_that_were_left_trainable():
    module = pretrained()
    before = tensors(module)
    held = HEAD | {name for name in names(module, "") if "bn" in name}
    assert names_of_kind(found(before, trained(module, names=held), linear_probe()), "cause") == ["norm"]


def test_weight_decay_on_frozen_tensors_is_told_by_how_they_shrink():
    module = pretrained().eval()
    before = tensors(module)
    images, labels = examples()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(5):
        features = module(preprocessing.to_tensor(images, READY))
        optimizer.zero_grad()
        nn.functional.cross_entropy(features, labels).backward()
        for name, parameter in module.named_parameters():
            if name not in HEAD:
                parameter.grad.zero_()  # "frozen"
        optimizer.step()
    told_ = found(before, module, linear_probe())
    assert names_of_kind(told_, "cause") == ["decay"] and set(names_of_kind(told_, "frozen-moved")) == names(module, "") - HEAD


def test_an_optimizer_built_before_unfreezing_trains_the_head_alone():
    module = pretrained()
    before = tensors(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name in HEAD
    optimizer = torch.optim.SGD([one for one in module.parameters() if one.requires_grad], lr=1e-2)
    module.requires_grad_(True)
    told_ = found(before, trained(module, optimizer=optimizer), full(EVAL))
    assert set(names_of_kind(told_, "never-moved")) == names(module, "") - HEAD
    assert names_of_kind(told_, "cause") == ["only-head"] and "built before unfreezing" in format_freeze_check(told_)


def test_a_part_that_no_group_of_the_optimizer_holds():
    module = pretrained()
    before = tensors(module)
    told_ = found(before, trained(module, names=names(module, "") - names(module, "layer2")), full(EVAL))
    assert set(names_of_kind(told_, "never-moved")) == names(module, "layer2") and names_of_kind(told_, "cause") == ["left-out"]


def test_a_head_that_was_not_trained_and_a_network_that_was_not():
    module = pretrained()
    before = tensors(module)
    told_ = found(before, trained(module, names=names(module, "") - HEAD), full(EVAL))
    assert set(names_of_kind(told_, "never-moved")) == HEAD and names_of_kind(told_, "cause") == ["head"]
    told_ = found(before, pretrained(), full(EVAL))
    assert names_of_kind(told_, "cause") == ["nothing-trained"] and told_["integrity"] == len(names(module, ""))


@pytest.mark.parametrize("recipe", [linear_probe(), full(), Recipe(phases=())])
def test_weights_that_were_never_loaded_are_one_violation(recipe):
    module = tiny()
    told_ = found(tensors(pretrained()), trained(module, mode="train"), recipe)
    assert told_["integrity"] == 1 and names_of_kind(told_, "cause") == ["not-loaded"]
    assert names_of_kind(told_, "not-loaded") == [group.name for group in backbones.layer_layout(module, 16).groups]


def test_one_part_that_was_not_loaded():
    module, other = pretrained(), tiny()
    before = tensors(module)
    module.layer3.load_state_dict(other.layer3.state_dict())
    told_ = found(before, trained(module, mode="train"), full())
    assert names_of_kind(told_, "not-loaded") == ["layer3"] and names_of_kind(told_, "cause") == ["partly-loaded"]


def test_what_too_hot_a_rate_has_made_unlike_was_loaded():
    module = pretrained()
    before = tensors(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    told_ = found(before, trained(module, 60, optimizer=optimizer, mode="train"), full())
    assert told_["integrity"] == 0 and max(told_[key] for key in told_ if key.startswith("trained/")) > 5


def test_a_head_of_other_outputs_that_is_as_drawn_and_answers_by_chance_was_never_trained():
    module = pretrained()
    before = {name: one for name, one in tensors(module).items() if name not in HEAD}
    told_ = found(before, trained(module, names=names(module, "") - HEAD, steps=2, lr=1e-4), full(EVAL))
    assert set(names_of_kind(told_, "never-moved")) == HEAD
    module = pretrained()
    taught = found(before, trained(module, 40, lr=3e-2), full(EVAL))
    assert taught["integrity"] == 0


def test_rounding_to_half_precision_is_no_movement():
    module = plain()
    before = tensors(module)
    trained(module, names=names(module, "head"))
    for half, word in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        after = {name: one.to(half).float() for name, one in tensors(module).items()}
        told_ = found(before, module, linear_probe(), Plain, after=after)
        assert told_["integrity"] == 0 and names_of_kind(told_, "odd") == [word]
        assert format_freeze_check(told_) == f"rounded to {word}"


def test_zeros_and_scales_come_to_notice():
    module = plain()
    before = tensors(module)
    trained(module)
    after = tensors(module)
    after |= {"lower.1.weight": torch.zeros(12), "stem.weight": 1e3 * after["stem.weight"]}
    told_ = found(before, module, full(), Plain, after=after)
    assert told_["integrity"] == 0
    assert "all zeros now: lower.1.weight; a hundred times as large or as small: stem.weight" in format_freeze_check(told_)


def test_a_belief_is_the_union_of_its_phases_but_for_a_best_step_only_the_first_is_sure():
    module = tiny()
    network = Architecture(module=module, layout=backbones.layer_layout(module, 16), device=torch.device("cpu"), cache=Path())
    both = lp_ft(Phase(batchnorm=BATCHNORM_EVAL))
    (may, must), best = (freeze_check.expected_names(network, replace(both, stop=stop)) for stop in ("last", "best"))
    assert may == must == names(module, "") and best == (may, HEAD)
    assert {"bn1.running_mean"} <= freeze_check.expected_names(network, lp_ft())[0]
    assert freeze_check.expected_names(network, Recipe(phases=(Phase(steps=2),)))[1] == set(), "too few steps to tell"
    assert freeze_check.expected_names(network, Recipe(phases=())) == (set(tensors(module)), HEAD)


def test_layers_are_taken_together_by_side():
    far = change_by_layer({"frozen/bn.weight": 0.0, "trained/bn.running_mean": 2.0, "trained/bn.running_var": 0.5, "x": 1.0})
    assert far == {"bn": {"frozen": 0.0, "trained": 2.0}}


# The real laboratory


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return make_npz(folder / "d.npz"), folder / "cache"


def pipeline(world, recipe, **more):
    return Pipeline(
        backbone=Backbone(arch="tiny-resnet", weights=WEIGHTS),
        data=PipelineData(target=world[0], train_size=60, test_size=None, train_preprocessing=READY),
        recipe=recipe,
        serving=Serving(preprocessing=READY),
        **more,
    )


FACTS = replace(
    fake_lab.PROFILE, model=replace(fake_lab.PROFILE.model, groups=("conv1", "layer1", "layer2", "layer3", "layer4"))
)
SHORT = Phase(steps=4, batch_size=16)
RECIPES = {"probe": linear_probe(SHORT), "full": full(SHORT), "partial": partial(replace(SHORT, batchnorm=BATCHNORM_EVAL))}
RECIPES["lp-ft, the best step"] = replace(lp_ft(replace(SHORT, steps=8)), stop="best")
RECIPES |= {"bitfit": bitfit(SHORT), "lora": lora(SHORT), "adapter": adapter(SHORT)}
INDUCED = {
    "probe": {"not-loaded", "frozen-group", "requires-grad-on-module", "decay", "batchnorm-train"},
    "full": {"not-loaded", "optimizer-before-unfreezing"},
    "partial": {
        "not-loaded",
        "frozen-group",
        "requires-grad-on-module",
        "decay",
        "batchnorm-train",
        "optimizer-before-unfreezing",
    },
    "lp-ft, the best step": {"not-loaded", "optimizer-before-unfreezing"},
    "adapter": {"not-loaded", "decay", "batchnorm-train"},
}
INDUCED |= dict.fromkeys(("bitfit", "lora"), INDUCED["partial"] - {"frozen-group"})
CAUSE = {
    "not-loaded": "not-loaded",
    "frozen-group": "group",
    "requires-grad-on-module": "nothing-frozen",
    "decay": "decay",
    "batchnorm-train": "statistics",
    "optimizer-before-unfreezing": "only-head",
}


def measured(world, one):
    trial = trials.make_trial(one, "test", 0, PLACE, plugin.measures["integrity"])
    (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), world[1])
    assert not record.error, record.error
    return record.scalars


@pytest.mark.parametrize("name", RECIPES)
def test_the_labs_own_loop_does_what_the_recipe_says_and_each_induced_failure_is_detected(name, world):
    subject = pipeline(world, RECIPES[name])
    assert measured(world, subject)["integrity"] == 0
    induced = plugin.induce(subject, FACTS)
    assert induced.keys() == INDUCED[name]
    for variant, arm in induced.items():
        scalars = measured(world, arm)
        assert scalars["integrity"] > 0, variant
        assert names_of_kind(scalars, f"cause/{CAUSE[variant]}"), variant


def carried_out(world, one):
    """The finding of a study of this plugin alone, in the real laboratory, on one seed."""
    suite = replace(fake_lab.SUITE, rules=replace(fake_lab.SUITE.rules, looks=(1,), tuning_seeds=1), recipe=one.recipe)
    study = replace(fake_lab.make_study(plugin, suite=suite, pipeline=one, facts=FACTS), context=PLACE)

    def real(trial):
        if trial.model.base.init == RANDOM:
            return fake_lab.fake_lab()(trial)
        (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), world[1])
        return record

    return fake_lab.run_study(study, real).findings


def test_our_own_loop_passes_and_says_why(world):
    (one,) = carried_out(world, pipeline(world, RECIPES["probe"]))
    assert (one.verdict, one.control) == ("PASS", "detected")
    assert one.reason.startswith("the training loop of xferbench follows the recipe by construction; holds")
    assert all(one.measures[f"induced:{variant}/harm"] > 0 for variant in INDUCED["probe"])
    assert one.measures["subject/harm"] == 0


CARELESS = """
import torch
from torch.nn import functional as F

def train(model, data, recipe, seed):
    model.layer1.requires_grad = False
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    x, y = data.train.tensors
    for _ in range(4):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model

train.supports = {"lr"}
"""


def test_training_code_that_forgets_to_freeze_fails(world, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "careless_freezing.py").write_text(dedent(CARELESS))
    code = user_code.find_callable("python:careless_freezing:train", tmp_path, files.sha256)
    (one,) = carried_out(world, pipeline(world, RECIPES["probe"], training=code))
    user_code.load_callable.cache_clear()
    assert one.verdict == "FAIL"
    for words in ("frozen, but moved: ", "buffers expected to stay", "nothing was frozen: module.requires_grad = False"):
        assert words in one.reason


def test_an_audit_needs_before_and_takes_on_trust_what_nobody_said():
    finished = replace(fake_lab.PIPELINE, checkpoint=Checkpoint(after=WEIGHTS))
    assert "from before training are not given" in plugin.applies(finished, FACTS)
    both = replace(finished, checkpoint=Checkpoint(after=WEIGHTS, before=WEIGHTS))
    assert plugin.applies(both, FACTS) == "" and plugin.induce(both, FACTS) == {}
    assert "--believed" in plugin.trust(both, FACTS)
    assert plugin.trust(replace(both, expected_training=linear_probe()), FACTS) == ""


AUDITED = replace(fake_lab.PIPELINE, checkpoint=Checkpoint(after=WEIGHTS, before=WEIGHTS))


def audited(violations, believed=None, **more):
    found_ = {"integrity": violations, "moved/a.weight": 0.5, "moved/b.weight": 0.0, **more}
    study = fake_lab.make_study(
        plugin,
        suite=replace(fake_lab.SUITE, rules=replace(fake_lab.SUITE.rules, looks=(1,))),
        pipeline=replace(AUDITED, expected_training=believed),
        facts=FACTS,
    )
    (one,) = fake_lab.run_study(study, fake_lab.fake_lab(measures={plugin.measures["integrity"]: found_})).findings
    return one


def test_what_nobody_said_is_measured_and_not_judged_but_weights_that_were_not_loaded_are():
    one = audited(0.0)
    assert one.verdict == "SKIPPED"
    assert one.reason.startswith("largest changes: a.weight (0.5); the expected training is not given: --believed")
    assert audited(0.0, linear_probe()).verdict == "PASS"
    lost = audited(1.0, **{"not-loaded/layer1": 1.0, "cause/not-loaded": 1.0})
    assert lost.verdict == "FAIL" and "uncorrelated with the weights from before: layer1; likely cause: " in lost.reason
    assert lost.remedy["text"] == plugin.remedy


def test_the_picture_draws_a_hundred_layers_by_side():
    from matplotlib.figure import Figure

    scalars = {f"frozen/layer{i}.weight": 0.0 for i in range(99)} | {"trained/head.weight": 0.3, "trained/x.y": float("inf")}
    study = fake_lab.make_study(
        plugin, suite=replace(fake_lab.SUITE, rules=replace(fake_lab.SUITE.rules, looks=(1,))), facts=FACTS
    )
    run = fake_lab.run_study(study, fake_lab.fake_lab(measures={plugin.measures["integrity"]: {"integrity": 0.0, **scalars}}))
    axes = Figure().add_subplot()
    plugin.plot(axes, run)
    assert [line.get_label() for line in axes.get_lines()] == ["expected frozen", "expected to train", "did not move"]
    assert len(axes.get_xticks()) <= 13 and axes.get_yscale() == "log"
