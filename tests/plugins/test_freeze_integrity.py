"""Changes of tensors against the expected training, and their likely cause: each mistake by hand, then in the real lab."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import CONTEXT, PREPROCESSING, WEIGHTS
from torch import nn

from xferbench.core import files
from xferbench.core.interventions import BATCHNORM_EVAL, EVAL_MODE, HEAD_ONLY, RANDOM
from xferbench.core.pipeline import Backbone, Checkpoint, Phase, Pipeline, PipelineData, Recipe, Serving
from xferbench.core.strategies import adapter, bitfit, full, linear_probe, lora, lp_ft, partial
from xferbench.data import user_code
from xferbench.lab.data import preprocessing
from xferbench.lab.evaluation import freeze_check
from xferbench.lab.evaluation.context import Examples, MeasureContext
from xferbench.lab.models import backbones, batchnorm, checkpoint_reader
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


class NetworkWithoutBatchNorm(nn.Module):
    """A network without BatchNorm, with a parameter that it does not use."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.lower = nn.Sequential(nn.Conv2d(12, 12, 3), nn.GroupNorm(3, 12), nn.ReLU())
        self.upper = nn.Sequential(nn.Conv2d(12, 12, 3), nn.GroupNorm(3, 12), nn.ReLU())
        self.spare = nn.Parameter(torch.ones(5))
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        return self.head(self.upper(self.lower(torch.relu(self.stem(x)))).mean((2, 3)))


def build_tiny_resnet():
    return backbones.build("tiny-resnet", CLASSES)


def copy_tensors(module):
    return {name: tensor.detach().clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def load_pretrained():
    """A tiny ResNet with the shipped weights and a new head."""
    torch.manual_seed(0)
    module = build_tiny_resnet()
    module.load_state_dict(
        {
            name: tensor
            for name, tensor in checkpoint_reader.read_checkpoint(Path(WEIGHTS.path)).items()
            if "linear" not in name
        },
        strict=False,
    )
    return module


def build_network_without_batchnorm():
    torch.manual_seed(0)
    return NetworkWithoutBatchNorm()


def train(module, steps=6, *, mode="eval", lr=1e-2, optimizer=None, names=None):
    """Train for a few steps; ``names`` are the parameters that the optimizer holds."""
    images, labels = make_examples()
    parameters = [parameter for name, parameter in module.named_parameters() if names is None or name in names]
    optimizer = optimizer or torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    module.train(mode == "train")
    for _ in range(steps):
        loss = nn.functional.cross_entropy(module(preprocessing.to_tensor(images, PREPROCESSING)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


def make_examples(count=64):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % CLASSES
    images = torch.randint(0, 60, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[torch.arange(count), :, 4 * labels, :] += 150
    return images, labels


def check_freezing(before, trained_module, recipe, build_random=build_tiny_resnet, *, after=None):
    """Compare a trained module with the expected training."""
    network = trained_module.eval()
    images, labels = make_examples()
    examples = Examples(images=images, labels=labels, preprocessing=PREPROCESSING)
    architecture = Architecture(
        module=network, layout=backbones.layer_layout(network, 16), device=torch.device("cpu"), cache=Path()
    )
    context = MeasureContext(
        before=before,
        after=after or copy_tensors(network),
        network=architecture,
        train=examples,
        test=examples,
        mode=EVAL_MODE,
        trial=None,
        expected_training=recipe,
        build_random=build_random,
    )
    return freeze_integrity.integrity(context)


def parameter_names(module, *prefixes):
    return {name for name, _ in module.named_parameters() if backbones.is_within(name, prefixes)}


HEAD, EVAL = {"linear.weight", "linear.bias"}, Phase(batchnorm=BATCHNORM_EVAL)
HEALTHY = {
    "a linear probe": (linear_probe(), ("linear",), "eval"),
    "full fine-tuning": (full(), ("",), "train"),
    "full with frozen statistics": (full(EVAL), ("",), "eval"),
    "partial": (partial(EVAL), ("linear", "layer4"), "eval"),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_training_that_follows_its_recipe_has_no_violation(name):
    recipe, prefixes, mode = HEALTHY[name]
    module = load_pretrained()
    before = copy_tensors(module)
    scalars = check_freezing(before, train(module, mode=mode, names=parameter_names(module, *prefixes)), recipe)
    assert scalars["integrity"] == 0 and not names_of_kind(scalars, "cause")
    assert all(value > 0 for key, value in scalars.items() if key.startswith("trained/"))
    assert not any(value for key, value in scalars.items() if key.startswith("frozen/"))


@pytest.mark.parametrize("prefixes", [("head",), ("head", "upper"), ("",)])
def test_a_network_without_batchnorm_has_no_violation_and_unused_parameters_need_not_move(prefixes):
    module = build_network_without_batchnorm()
    before = copy_tensors(module)
    recipe = {1: linear_probe(), 2: partial()}.get(len(prefixes)) if prefixes != ("",) else full()
    assert (
        check_freezing(before, train(module, names=parameter_names(module, *prefixes)), recipe, NetworkWithoutBatchNorm)[
            "integrity"
        ]
        == 0
    )


def test_parameters_with_a_negligible_gradient_need_not_move():
    module = build_network_without_batchnorm()
    before = copy_tensors(module)
    module.upper[1].weight.register_hook(torch.zeros_like)  # rounding loses the update
    train(module)
    assert check_freezing(before, module, full(), NetworkWithoutBatchNorm)["integrity"] == 1
    with torch.no_grad():
        module.head.weight *= 1e6  # the gradients of all other parameters are large beside that of the head, and the reverse
    assert check_freezing(before, module, full(), NetworkWithoutBatchNorm)["integrity"] == 1
    with torch.no_grad():
        module.head.weight *= 1e-12
    assert check_freezing(before, module, full(), NetworkWithoutBatchNorm)["integrity"] == 0


def test_moved_statistics_are_reported_by_layer_with_their_cause():
    module = load_pretrained()
    before = copy_tensors(module)
    scalars = check_freezing(before, train(module, names=HEAD, mode="train"), linear_probe())
    assert set(names_of_kind(scalars, "buffer-moved")) == {name for name in before if "running" in name}
    assert not names_of_kind(scalars, "frozen-moved") and names_of_kind(scalars, "cause") == ["statistics"]
    assert scalars["odd/steps in train mode"] == 6
    assert "BatchNorm stayed in train mode" in format_freeze_check(scalars)


def test_causes_of_moved_statistics_are_named_only_where_the_tensors_show_them():
    before = copy_tensors(train(load_pretrained(), names=HEAD, mode="train"))
    reset = load_pretrained()
    for layer in batchnorm.batchnorm_layers(reset).values():
        layer.reset_running_stats()
    scalars = check_freezing(before, reset, linear_probe())
    assert names_of_kind(scalars, "cause") == ["reset"]
    assert "train mode" not in format_freeze_check(scalars)

    module = train(train(load_pretrained(), names=HEAD, mode="train"), names=HEAD)
    overwritten = copy_tensors(module) | {"bn1.running_mean": module.bn1.running_mean + 0.5}
    scalars = check_freezing(before, module, linear_probe(), after=overwritten)
    assert names_of_kind(scalars, "cause") == ["overwritten"]

    infinite = copy_tensors(module) | {"bn1.running_var": torch.full_like(module.bn1.running_var, float("inf"))}
    scalars = check_freezing(before, module, linear_probe(), after=infinite)
    assert not names_of_kind(scalars, "cause")
    assert "not finite now: bn1.running_var" in format_freeze_check(scalars)


def test_moved_statistics_that_the_expected_training_allows_are_a_note():
    module = load_pretrained()
    before = copy_tensors(module)
    scalars = check_freezing(before, train(module, names=HEAD, mode="train"), Recipe(phases=(Phase(trainable=HEAD_ONLY),)))
    assert scalars["integrity"] == 0
    assert "BatchNorm statistics of frozen layers moved, which batchnorm = train allows: bn1" in format_freeze_check(scalars)


def test_requires_grad_on_a_module_freezes_nothing():
    module = load_pretrained()
    before = copy_tensors(module)
    module.requires_grad = False  # only sets an attribute
    for part in (module.layer1, module.layer2):
        part.requires_grad = False
    scalars = check_freezing(before, train(module), linear_probe())
    assert set(names_of_kind(scalars, "frozen-moved")) == parameter_names(module, "") - HEAD
    assert names_of_kind(scalars, "cause") == ["nothing-frozen"]


def test_an_unknown_prefix_freezes_nothing():
    module = build_network_without_batchnorm()
    before = copy_tensors(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad = not name.startswith("backbone.")
    scalars = check_freezing(before, train(module), linear_probe(), NetworkWithoutBatchNorm)
    assert set(names_of_kind(scalars, "frozen-moved")) == parameter_names(module, "stem", "lower", "upper")
    assert names_of_kind(scalars, "cause") == ["nothing-frozen"]


def test_a_group_that_the_optimizer_holds_is_the_cause():
    module = load_pretrained()
    before = copy_tensors(module)
    scalars = check_freezing(before, train(module, names=parameter_names(module, "linear", "layer4")), linear_probe())
    assert set(names_of_kind(scalars, "frozen-moved")) == parameter_names(module, "layer4")
    assert names_of_kind(scalars, "cause/group") == [
        "layer4"
    ] and "likely cause: the optimizer holds layer4" in format_freeze_check(scalars)


def test_trainable_norm_layers_are_the_cause():
    module = load_pretrained()
    before = copy_tensors(module)
    held_names = HEAD | {name for name in parameter_names(module, "") if "bn" in name}
    assert names_of_kind(check_freezing(before, train(module, names=held_names), linear_probe()), "cause") == ["norm"]


def test_weight_decay_on_frozen_tensors_is_recognized_by_their_shrinkage():
    module = load_pretrained().eval()
    before = copy_tensors(module)
    images, labels = make_examples()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(5):
        features = module(preprocessing.to_tensor(images, PREPROCESSING))
        optimizer.zero_grad()
        nn.functional.cross_entropy(features, labels).backward()
        for name, parameter in module.named_parameters():
            if name not in HEAD:
                parameter.grad.zero_()  # an attempt to freeze
        optimizer.step()
    scalars = check_freezing(before, module, linear_probe())
    assert (
        names_of_kind(scalars, "cause") == ["decay"]
        and set(names_of_kind(scalars, "frozen-moved")) == parameter_names(module, "") - HEAD
    )


def test_an_optimizer_built_before_unfreezing_trains_only_the_head():
    module = load_pretrained()
    before = copy_tensors(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name in HEAD
    optimizer = torch.optim.SGD([parameter for parameter in module.parameters() if parameter.requires_grad], lr=1e-2)
    module.requires_grad_(True)
    scalars = check_freezing(before, train(module, optimizer=optimizer), full(EVAL))
    assert set(names_of_kind(scalars, "never-moved")) == parameter_names(module, "") - HEAD
    assert names_of_kind(scalars, "cause") == ["only-head"] and "built before unfreezing" in format_freeze_check(scalars)


def test_a_part_that_the_optimizer_does_not_hold_is_the_cause():
    module = load_pretrained()
    before = copy_tensors(module)
    scalars = check_freezing(
        before, train(module, names=parameter_names(module, "") - parameter_names(module, "layer2")), full(EVAL)
    )
    assert set(names_of_kind(scalars, "never-moved")) == parameter_names(module, "layer2") and names_of_kind(
        scalars, "cause"
    ) == ["left-out"]


def test_an_untrained_head_and_an_untrained_network_are_recognized():
    module = load_pretrained()
    before = copy_tensors(module)
    scalars = check_freezing(before, train(module, names=parameter_names(module, "") - HEAD), full(EVAL))
    assert set(names_of_kind(scalars, "never-moved")) == HEAD and names_of_kind(scalars, "cause") == ["head"]
    scalars = check_freezing(before, load_pretrained(), full(EVAL))
    assert names_of_kind(scalars, "cause") == ["nothing-trained"] and scalars["integrity"] == len(parameter_names(module, ""))


@pytest.mark.parametrize("recipe", [linear_probe(), full(), Recipe(phases=())])
def test_weights_that_were_never_loaded_are_one_violation(recipe):
    module = build_tiny_resnet()
    scalars = check_freezing(copy_tensors(load_pretrained()), train(module, mode="train"), recipe)
    assert scalars["integrity"] == 1 and names_of_kind(scalars, "cause") == ["not-loaded"]
    assert names_of_kind(scalars, "not-loaded") == [group.name for group in backbones.layer_layout(module, 16).groups]


def test_a_part_that_was_not_loaded_is_named():
    module, other = load_pretrained(), build_tiny_resnet()
    before = copy_tensors(module)
    module.layer3.load_state_dict(other.layer3.state_dict())
    scalars = check_freezing(before, train(module, mode="train"), full())
    assert names_of_kind(scalars, "not-loaded") == ["layer3"] and names_of_kind(scalars, "cause") == ["partly-loaded"]


def test_a_high_rate_is_not_mistaken_for_weights_that_were_not_loaded():
    module = load_pretrained()
    before = copy_tensors(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    scalars = check_freezing(before, train(module, 60, optimizer=optimizer, mode="train"), full())
    assert scalars["integrity"] == 0 and max(scalars[key] for key in scalars if key.startswith("trained/")) > 5


def test_a_new_head_that_is_no_better_than_chance_was_never_trained():
    module = load_pretrained()
    before = {name: tensor for name, tensor in copy_tensors(module).items() if name not in HEAD}
    scalars = check_freezing(before, train(module, names=parameter_names(module, "") - HEAD, steps=2, lr=1e-4), full(EVAL))
    assert set(names_of_kind(scalars, "never-moved")) == HEAD
    module = load_pretrained()
    scalars_of_trained = check_freezing(before, train(module, 40, lr=3e-2), full(EVAL))
    assert scalars_of_trained["integrity"] == 0


def test_uniform_weights_of_a_head_are_recognized_until_one_step_moves_them():
    torch.manual_seed(0)
    for layer in (nn.Linear(512, 10), nn.Conv2d(512, 4, 1)):
        assert freeze_check.is_initial_uniform(layer.weight.detach())
        assert freeze_check.is_initial_uniform(layer.weight.detach().bfloat16())
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        (layer.weight * torch.randn_like(layer.weight)).sum().backward()
        optimizer.step()
        assert not freeze_check.is_initial_uniform(layer.weight.detach())
    assert not freeze_check.is_initial_uniform(torch.randn(10, 512) / 512**0.5 / 4), "normal weights"
    assert not freeze_check.is_initial_uniform(nn.Linear(64, 4).weight.detach()), "few weights"
    assert not freeze_check.is_initial_uniform(torch.full((10, 512), float("nan")))


class NetworkWithWideHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 256, 5, stride=3), nn.Linear(256, CLASSES)

    def forward(self, x):
        return self.head(self.body(x).relu().amax((2, 3)))


def test_an_untrained_head_on_trained_features_is_recognized_however_accurate_it_is():
    torch.manual_seed(0)
    module = NetworkWithWideHead()
    body = {name: tensor for name, tensor in copy_tensors(module).items() if name.startswith("body")}
    train(module, 60, names={"body.weight", "body.bias"}, lr=1e-2)
    images, labels = make_examples()
    correct = module(preprocessing.to_tensor(images, PREPROCESSING)).argmax(1) == labels
    assert float(correct.double().mean()) > 0.5
    scalars = check_freezing(body, module, full(), NetworkWithWideHead)
    assert set(names_of_kind(scalars, "never-moved")) == {"head.weight", "head.bias"}
    assert names_of_kind(scalars, "cause") == ["head"]
    train(module, 10, lr=1e-2)
    assert check_freezing(body, module, full(), NetworkWithWideHead)["integrity"] == 0


def test_rounding_to_half_precision_is_no_movement():
    module = build_network_without_batchnorm()
    before = copy_tensors(module)
    train(module, names=parameter_names(module, "head"))
    for dtype, dtype_name in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        after = {name: tensor.to(dtype).float() for name, tensor in copy_tensors(module).items()}
        scalars = check_freezing(before, module, linear_probe(), NetworkWithoutBatchNorm, after=after)
        assert scalars["integrity"] == 0 and names_of_kind(scalars, "odd") == [dtype_name]
        assert format_freeze_check(scalars) == f"rounded to {dtype_name}"


def test_zeros_and_large_changes_of_scale_are_reported():
    module = build_network_without_batchnorm()
    before = copy_tensors(module)
    train(module)
    after = copy_tensors(module)
    after |= {"lower.1.weight": torch.zeros(12), "stem.weight": 1e3 * after["stem.weight"]}
    scalars = check_freezing(before, module, full(), NetworkWithoutBatchNorm, after=after)
    assert scalars["integrity"] == 0
    assert "all zeros now: lower.1.weight; a hundred times as large or as small: stem.weight" in format_freeze_check(scalars)


def test_expected_training_is_the_union_of_its_phases_but_only_the_first_is_certain_with_a_best_step():
    module = build_tiny_resnet()
    network = Architecture(module=module, layout=backbones.layer_layout(module, 16), device=torch.device("cpu"), cache=Path())
    recipe = lp_ft(Phase(batchnorm=BATCHNORM_EVAL))
    (may_change, must_change), best = (
        freeze_check.expected_names(network, replace(recipe, stop=stop)) for stop in ("last", "best")
    )
    assert may_change == must_change == parameter_names(module, "") and best == (may_change, HEAD)
    assert {"bn1.running_mean"} <= freeze_check.expected_names(network, lp_ft())[0]
    assert freeze_check.expected_names(network, Recipe(phases=(Phase(steps=2),)))[1] == set(), "too few steps to decide"
    assert freeze_check.expected_names(network, Recipe(phases=())) == (set(copy_tensors(module)), HEAD)


def test_changes_are_grouped_by_layer_and_by_side():
    changes = change_by_layer(
        {"frozen/bn.weight": 0.0, "trained/bn.running_mean": 2.0, "trained/bn.running_var": 0.5, "x": 1.0}
    )
    assert changes == {"bn": {"frozen": 0.0, "trained": 2.0}}


# The real lab


@pytest.fixture(scope="module")
def dataset_and_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    return make_npz(folder / "d.npz"), folder / "cache"


def make_pipeline(dataset_and_cache, recipe, **fields):
    return Pipeline(
        backbone=Backbone(arch="tiny-resnet", weights=WEIGHTS),
        data=PipelineData(target=dataset_and_cache[0], train_size=60, test_size=None, train_preprocessing=PREPROCESSING),
        recipe=recipe,
        serving=Serving(preprocessing=PREPROCESSING),
        **fields,
    )


PROFILE = replace(
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
CAUSES = {
    "not-loaded": "not-loaded",
    "frozen-group": "group",
    "requires-grad-on-module": "nothing-frozen",
    "decay": "decay",
    "batchnorm-train": "statistics",
    "optimizer-before-unfreezing": "only-head",
}


def measure(dataset_and_cache, pipeline):
    trial = trials.make_trial(pipeline, "test", 0, CONTEXT, plugin.measures["integrity"])
    (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), dataset_and_cache[1])
    assert not record.error, record.error
    return record.scalars


@pytest.mark.parametrize("name", RECIPES)
def test_the_training_loop_follows_the_recipe_and_each_induced_failure_is_detected(name, dataset_and_cache):
    subject = make_pipeline(dataset_and_cache, RECIPES[name])
    assert measure(dataset_and_cache, subject)["integrity"] == 0
    induced = plugin.induce(subject, PROFILE)
    assert induced.keys() == INDUCED[name]
    for variant, arm in induced.items():
        scalars = measure(dataset_and_cache, arm)
        assert scalars["integrity"] > 0, variant
        assert names_of_kind(scalars, f"cause/{CAUSES[variant]}"), variant


def compute_findings(dataset_and_cache, pipeline):
    """The findings of a study of this plugin in the real lab, on one seed."""
    suite = replace(fake_lab.SUITE, rules=replace(fake_lab.SUITE.rules, looks=(1,), tuning_seeds=1), recipe=pipeline.recipe)
    study = replace(fake_lab.make_study(plugin, suite=suite, pipeline=pipeline, facts=PROFILE), context=CONTEXT)

    def run_trial(trial):
        if trial.model.base.network.init == RANDOM:
            return fake_lab.fake_lab()(trial)
        (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), dataset_and_cache[1])
        return record

    return fake_lab.run_study(study, run_trial).findings


def test_the_training_loop_passes_with_a_reason(dataset_and_cache):
    (finding,) = compute_findings(dataset_and_cache, make_pipeline(dataset_and_cache, RECIPES["probe"]))
    assert (finding.verdict, finding.control.outcome) == ("PASS", "detected")
    assert finding.reason.startswith("the training loop of xferbench follows the recipe by construction; holds")
    assert all(finding.measures[f"induced:{variant}/harm"] > 0 for variant in INDUCED["probe"])
    assert finding.measures["subject/harm"] == 0


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


def test_training_code_that_forgets_to_freeze_fails(dataset_and_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "careless_freezing.py").write_text(dedent(CARELESS))
    code = user_code.find_callable("python:careless_freezing:train", tmp_path, files.sha256)
    (finding,) = compute_findings(dataset_and_cache, make_pipeline(dataset_and_cache, RECIPES["probe"], training=code))
    user_code.load_callable.cache_clear()
    assert finding.verdict == "FAIL"
    for text in ("frozen, but moved: ", "buffers expected to stay", "nothing was frozen: module.requires_grad = False"):
        assert text in finding.reason


def test_an_audit_needs_the_weights_from_before_and_takes_an_unknown_training_on_trust():
    finished = replace(fake_lab.PIPELINE, checkpoint=Checkpoint(after=WEIGHTS))
    assert "from before training are not given" in plugin.applies(finished, PROFILE)
    with_before = replace(finished, checkpoint=Checkpoint(after=WEIGHTS, before=WEIGHTS))
    assert plugin.applies(with_before, PROFILE) == "" and plugin.induce(with_before, PROFILE) == {}
    assert "--believed" in plugin.trust(with_before, PROFILE)
    assert plugin.trust(replace(with_before, expected_training=linear_probe()), PROFILE) == ""


AUDITED_PIPELINE = replace(fake_lab.PIPELINE, checkpoint=Checkpoint(after=WEIGHTS, before=WEIGHTS))


def audit_finding(violations, expected=None, **more_scalars):
    scalars = {"integrity": violations, "moved/a.weight": 0.5, "moved/b.weight": 0.0, **more_scalars}
    study = fake_lab.make_study(
        plugin,
        suite=replace(fake_lab.SUITE, rules=replace(fake_lab.SUITE.rules, looks=(1,))),
        pipeline=replace(AUDITED_PIPELINE, expected_training=expected),
        facts=PROFILE,
    )
    (finding,) = fake_lab.run_study(study, fake_lab.fake_lab(measures={plugin.measures["integrity"]: scalars})).findings
    return finding


def test_an_unknown_training_is_not_judged_but_weights_that_were_not_loaded_are():
    finding = audit_finding(0.0)
    assert finding.verdict == "SKIPPED"
    assert finding.reason.startswith("largest changes: a.weight (0.5); the expected training is not given: --believed")
    assert audit_finding(0.0, linear_probe()).verdict == "PASS"
    not_loaded = audit_finding(1.0, **{"not-loaded/layer1": 1.0, "cause/not-loaded": 1.0})
    assert (
        not_loaded.verdict == "FAIL"
        and "uncorrelated with the weights from before: layer1; likely cause: " in not_loaded.reason
    )
    assert not_loaded.remedy["text"] == plugin.remedy


def test_the_plot_draws_a_hundred_layers_by_side():
    from matplotlib.figure import Figure

    scalars = {f"frozen/layer{i}.weight": 0.0 for i in range(99)} | {"trained/head.weight": 0.3, "trained/x.y": float("inf")}
    study = fake_lab.make_study(
        plugin, suite=replace(fake_lab.SUITE, rules=replace(fake_lab.SUITE.rules, looks=(1,))), facts=PROFILE
    )
    run = fake_lab.run_study(study, fake_lab.fake_lab(measures={plugin.measures["integrity"]: {"integrity": 0.0, **scalars}}))
    axes = Figure().add_subplot()
    plugin.plot(axes, run)
    assert [line.get_label() for line in axes.get_lines()] == ["expected frozen", "expected to train", "did not move"]
    assert len(axes.get_xticks()) <= 13 and axes.get_yscale() == "log"
