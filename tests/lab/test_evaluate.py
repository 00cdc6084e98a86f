"""Evaluations of a trained network: source data, serving orders, divergence and finishing edits."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import BRIEF, PLACE, READY, WEIGHTS, make_fit, make_trial, make_world
from test_run_trials import get_record

from xferbench.core.interventions import (
    ALL_LAYERS,
    BATCHNORM_EVAL,
    BATCHNORM_TRAIN,
    EVAL_MODE,
    HEAD_ONLY,
    TRAIN_MODE,
    BatchNormMomentum,
    Finish,
    RestoreBatchNorm,
    SourceHead,
    Trainable,
    TrainModeByClass,
)
from xferbench.core.pipeline import AuxiliaryDataset, Backbone, Phase, Pipeline, PipelineData, Recipe, Serving
from xferbench.lab.data import datasets, domains, preprocessing
from xferbench.lab.evaluation import edits, evaluate
from xferbench.lab.models import backbones, batchnorm, checkpoint_reader
from xferbench.lab.training import loop
from xferbench.lab.worker import run_trials
from xferbench.study.trials import make_trial as make_study_trial
from xferbench.study.trials import training_spec

OUTPUTS = tuple(range(19, 9, -1))  # of the shipped head, for the source's ten classes
DIVERGING = Phase(lr=1e6, optimizer="sgd", steps=12, batch_size=16)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    world = make_world(folder)
    world.data = make_npz(folder / "target.npz", test=130)
    world.source = AuxiliaryDataset(data=make_npz(folder / "s.npz", train=85, classes=10), classes=OUTPUTS)
    return world


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_pipeline(world, *phases, **more):
    return Pipeline(
        backbone=Backbone(arch="tiny-resnet", weights=WEIGHTS),
        data=PipelineData(
            target=world.data,
            train_size=60,
            test_size=None,
            train_preprocessing=READY,
            source=world.source,
            shifted=AuxiliaryDataset(data=world.data, classes=(0, 1, 2, 3)),
        ),
        recipe=Recipe(phases=phases),
        serving=Serving(preprocessing=READY),
        **more,
    )


def predict(world, pipeline, view, seed=0):
    """Return the predictions of a named view."""
    (record,), _ = run_trials.run_trials(
        [trial := make_study_trial(pipeline, view, seed, PLACE)], frozenset([trial.key]), world.cache
    )
    assert not record.error
    return record.predictions


def load_checkpoint():
    """Return the published network."""
    module = backbones.build("tiny-resnet", 20).eval()
    module.load_state_dict(
        checkpoint_reader.read_checkpoint(run_trials.Path(WEIGHTS.path)), strict=False
    )  # the file has no counters
    return module


@torch.no_grad()
def p_true(module, split):
    p = module(preprocessing.to_tensor(torch.from_numpy(np.array(split.images)), READY)).double().softmax(1)
    return p[torch.arange(len(p)), torch.from_numpy(split.labels)].numpy()


def test_source_before_evaluates_the_checkpoint_on_source_images(world):
    predictions = predict(world, make_pipeline(world, Phase(**BRIEF)), "source-before", seed=3)
    test = domains.load_domain(world.source, READY, world.cache).test
    np.testing.assert_allclose(predictions.p_true, p_true(load_checkpoint(), test), rtol=1e-4, atol=1e-6)
    assert (predictions.example == test.example).all() and set(predictions.label) == set(OUTPUTS)
    assert predictions.probabilities.shape == (len(test.labels), 20)


def test_held_out_source_images_are_not_used_in_training(world):
    predictions = predict(world, make_pipeline(world, Phase(**BRIEF)), "source-held-out")
    source = domains.load_domain(world.source, READY, world.cache)
    assert set(predictions.example.tolist()) == set(domains.held_out_split(source).example.tolist())
    assert not set(predictions.example.tolist()) & set(domains.memory_split(source).example.tolist())


@pytest.mark.parametrize("views", [("source-before", "source"), ("source-probe-before", "source-probe")])
def test_a_frozen_backbone_forgets_exactly_nothing(world, views):
    probe = make_pipeline(world, Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=1e-2, **BRIEF))
    before, after = (predict(world, probe, view, seed=2) for view in views)
    for name in ("example", "predicted", "p_true", "p_max", "sum_p2", "probabilities"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name


def test_batchnorm_alone_can_forget_and_restoring_it_reverts_that(world):
    probe = make_fit(world, Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_TRAIN, lr=1e-2, **BRIEF))
    view = {"domain": world.source}
    before = get_record(world, replace(probe, phases=()), edits=(SourceHead(),), **view).predictions.p_true
    after = get_record(world, probe, edits=(SourceHead(),), **view).predictions.p_true
    back = get_record(world, probe, edits=(RestoreBatchNorm(), SourceHead()), **view).predictions.p_true
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(back, before, rtol=1e-4, atol=1e-6)


def test_a_shifted_set_is_evaluated_with_the_head_of_the_target(world):
    pipeline = make_pipeline(world, Phase(**BRIEF))
    shifted, test = (predict(world, pipeline, view) for view in ("shifted", "test"))
    assert np.array_equal(shifted.p_true, test.p_true), "the shifted set is the target itself"
    moved = replace(pipeline, data=replace(pipeline.data, shifted=AuxiliaryDataset(data=world.data, classes=(3, 2, 1, 0))))
    assert (predict(world, moved, "shifted").label == 3 - test.label).all()


def test_a_domain_with_unknown_classes_is_not_evaluated(world):
    with pytest.raises(ValueError, match=r"no \[source\] whose classes are known"):
        make_study_trial(
            replace(make_pipeline(world), data=replace(make_pipeline(world).data, source=None)), "source", 0, PLACE
        )
    unknown = replace(make_pipeline(world), data=replace(make_pipeline(world).data, shifted=AuxiliaryDataset(data=world.data)))
    with pytest.raises(ValueError, match=r"no \[shifted\] whose classes are known"):
        make_study_trial(unknown, "shifted", 0, PLACE)


def test_serving_orders_change_the_statistics_of_batches(world):
    spec = make_fit(world)
    labels = datasets.load_dataset(world.data, READY, None, world.cache).test.labels
    order = evaluate.serving_order(labels, by_class=True)
    assert sorted(order.tolist()) == list(range(len(labels))) and (np.diff(labels[order]) >= 0).all()
    shuffled = evaluate.serving_order(labels, by_class=False)
    assert sorted(shuffled.tolist()) == list(range(len(labels))) and (np.diff(labels[shuffled]) < 0).any()
    by_mode = {mode: get_record(world, spec, mode=mode).predictions for mode in (EVAL_MODE, TRAIN_MODE, TrainModeByClass())}
    assert all(np.array_equal(predictions.label, labels) for predictions in by_mode.values()), "in the order of the examples"
    for one_way, other in itertools.combinations(by_mode, 2):
        assert np.abs(by_mode[one_way].p_true - by_mode[other].p_true).max() > 0.01


def test_batches_by_class_equal_those_of_the_module(world):
    spec = make_fit(world)
    predictions = get_record(world, spec, mode=TrainModeByClass()).predictions
    dataset, _ = run_trials.training_inputs(spec, make_trial(spec), world.cache)
    state, _ = checkpoint_reader.read_saved(run_trials.weights_path(spec, PLACE, world.cache))
    module = backbones.build("tiny-resnet", 4)
    module.load_state_dict({name.removeprefix("last."): t for name, t in state.items() if name.startswith("last.")})
    order = evaluate.serving_order(dataset.test.labels, by_class=True)
    first = np.array_split(order, max(1, len(order) // evaluate.SERVING_BATCH))[0]
    expected = p_true(module.train(), datasets.take(dataset.test, first))
    np.testing.assert_allclose(predictions.p_true[first], expected, rtol=1e-3, atol=1e-5)


def trained_by_hand(world, pipeline):
    """Return the network of a pipeline after its last step as a separate module, and the dataset."""
    spec = training_spec(pipeline, 0)
    dataset, _ = run_trials.training_inputs(spec, make_trial(spec), world.cache)
    state, _ = checkpoint_reader.read_saved(run_trials.weights_path(spec, PLACE, world.cache))
    module = backbones.build("tiny-resnet", 4).eval()
    module.load_state_dict({name.removeprefix("last."): t for name, t in state.items() if name.startswith("last.")})
    return module, dataset


def test_the_temperature_is_fitted_to_validation_images(world):
    pipeline = make_pipeline(world, Phase(lr=1e-2, **BRIEF))
    plain, tempered = (predict(world, pipeline, view) for view in ("test", "tempered"))
    module, dataset = trained_by_hand(world, pipeline)
    _, held_out = datasets.train_validation_indices(dataset, 60, 0)
    validation = datasets.take(dataset.train, held_out)

    def logits(split):
        with torch.no_grad():
            return module(preprocessing.to_tensor(torch.from_numpy(np.array(split.images)), READY)).double().numpy()

    temperature = edits.fit_temperature(logits(validation), validation.labels)
    p = torch.from_numpy(logits(dataset.test) / temperature).softmax(1).numpy()
    np.testing.assert_allclose(tempered.p_true, p[np.arange(len(p)), dataset.test.labels], rtol=1e-3, atol=1e-5)
    assert abs(temperature - 1) > 0.01 and np.array_equal(tempered.predicted, plain.predicted)


def test_training_images_are_those_of_the_training_subset(world):
    pipeline = make_pipeline(world, Phase(**BRIEF))
    examples = {view: set(predict(world, pipeline, view).example.tolist()) for view in ("training", "validation", "test")}
    _, dataset = trained_by_hand(world, pipeline)
    index, _ = datasets.train_validation_indices(dataset, 60, 0)
    assert examples["training"] == set(dataset.train.example[index].tolist())
    assert not examples["training"] & (examples["validation"] | examples["test"])


@pytest.mark.parametrize("view", ["source", "source-probe"])
def test_a_diverged_network_predicts_the_class_frequencies_of_the_source_on_the_source(world, view):
    predictions = predict(world, make_pipeline(world, DIVERGING), view)
    train = domains.load_domain(world.source, READY, world.cache).train.labels
    usual = np.bincount(train).argmax()
    assert usual in OUTPUTS and (predictions.predicted == usual).all()
    share = np.bincount(train, minlength=20) / len(train)
    np.testing.assert_allclose(predictions.p_true, share[predictions.label], rtol=1e-6)


def test_a_diverged_network_predicts_the_class_frequencies_of_the_target_elsewhere(world):
    pipeline = make_pipeline(world, DIVERGING)
    for view in ("test", "shifted"):
        assert predict(world, pipeline, view).p_true == pytest.approx(0.25)


def test_unknown_examples_are_an_error(world):
    trial = make_trial(make_fit(world), examples="train")
    (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), world.cache)
    assert "no such examples" in record.error


LP_FT = (
    Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=1e-2, **BRIEF),
    Phase(batchnorm=BatchNormMomentum(momentum=0.5), lr=1e-2, **BRIEF),
)


def finished_tensors(world, finish, view, *phases, seed=0):
    """Return the tensors that a named view of a recipe with a finish evaluates, and the trial."""
    pipeline = make_pipeline(world, *phases or LP_FT)
    trial = make_study_trial(
        replace(pipeline, recipe=replace(pipeline.recipe, finish=Finish.parse(finish) if finish else None)), view, seed, PLACE
    )
    (model,), _ = run_trials._trained_models([trial.model.base], trial, world.cache)
    (model,) = run_trials._with_phase_start([trial.model.base], [model], trial, world.cache)
    return evaluate.edit_tensors(run_trials.load_model(trial, model, world.cache), trial.model.edits, trial.view), trial


def same_tensors(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_adabn_changes_only_statistics_and_depends_on_the_domain(world):
    plain, _ = finished_tensors(world, "", "test")
    by_view = {view: finished_tensors(world, "adabn", view)[0] for view in ("test", "validation", "shifted", "source")}
    (layers,) = {frozenset(batchnorm.statistics_names(backbones.build("tiny-resnet", 4)))}
    moved = {name for name in plain if not torch.equal(plain[name], by_view["test"][name])}
    assert moved and moved <= layers
    assert same_tensors(by_view["test"], by_view["validation"])
    body = {name for name in plain if not name.startswith("linear.")}
    for view in ("shifted", "source"):
        assert {name for name in body if not torch.equal(plain[name], by_view[view][name])} <= layers
    mean = "bn1.running_mean"
    assert len({tuple(tensors[mean].tolist()) for tensors in (plain, *by_view.values())}) == 4


def test_adabn_uses_the_preprocessing_of_the_view_and_no_held_out_images(world, monkeypatch):
    calls, original = [], evaluate._recalibrate
    monkeypatch.setattr(
        evaluate, "_recalibrate", lambda images, *rest: calls.append((images, rest[0])) or original(images, *rest)
    )
    bgr = replace(READY, channels="bgr")
    pipeline = replace(make_pipeline(world, *LP_FT), serving=replace(make_pipeline(world, *LP_FT).serving, preprocessing=bgr))
    pipeline = replace(pipeline, recipe=replace(pipeline.recipe, finish=Finish.parse("adabn")))
    predict(world, pipeline, "test")
    predict(world, pipeline, "shifted")
    predict(world, pipeline, "source-held-out")
    assert [prepared for _, prepared in calls] == [bgr, bgr, bgr]
    assert [len(images) for images, _ in calls] == [60, 60, 43]
    held_out = domains.held_out_split(domains.load_domain(world.source, READY, world.cache)).images
    assert not {image.tobytes() for image in held_out} & {image.tobytes() for image in calls[2][0]}


def test_interpolation_is_bit_identical_at_both_ends(world):
    plain, trial = finished_tensors(world, "", "test")
    assert same_tensors(finished_tensors(world, "interpolate:1", "test")[0], plain)
    (shorter,), _ = run_trials._trained_models([replace(trial.model.base, phases=LP_FT[:1])], trial, world.cache)
    assert same_tensors(finished_tensors(world, "interpolate:0", "test")[0], shorter.last)
    half, _ = finished_tensors(world, "interpolate:0.5", "test")
    for name, tensor in half.items():
        between = torch.lerp(shorter.last[name], plain[name], 0.5) if tensor.is_floating_point() else plain[name]
        assert torch.equal(tensor, between)
    assert not torch.equal(half["linear.weight"], plain["linear.weight"]), "the head too"
    assert not torch.equal(half["bn1.running_var"], plain["bn1.running_var"]), "and running statistics"


def test_the_phase_start_is_what_the_last_phase_started_from_in_a_group_too(world, monkeypatch):
    adapted = (
        LP_FT[0],
        replace(LP_FT[1], trainable=ALL_LAYERS),
        Phase(trainable=Trainable.parse("adapter:2"), batchnorm=BATCHNORM_EVAL, **BRIEF),
    )
    specs = [make_fit(world, *adapted, seed=seed) for seed in range(2)]
    calls, original = [], loop._train_phase

    def record_call(run, stacked, **more):
        if run.index == len(adapted) - 1:
            calls.append({name: tensor.clone() for name, tensor in stacked.items()})
        yield from original(run, stacked, **more)

    monkeypatch.setattr(loop, "_train_phase", record_call)
    trial, cache = make_trial(specs[0]), world.cache / "begun"
    models, _ = run_trials._trained_models(specs, trial, cache)
    for member, model in enumerate(run_trials._with_phase_start(specs, models, trial, cache)):
        assert same_tensors(model.begun.last, {name: tensor[member] for name, tensor in calls[0].items()})


def test_the_start_of_a_single_phase_is_the_initial_network(world):
    phase = Phase(**BRIEF)
    tensors, trial = finished_tensors(world, "interpolate:0", "test", phase)
    (whole,), _ = run_trials._trained_models([trial.model.base], trial, world.cache)
    assert same_tensors(tensors, whole.before)


def test_a_finish_uses_the_weights_in_the_cache(world, tmp_path):
    plain = make_pipeline(world, *LP_FT)
    trials = {
        spelling: make_study_trial(
            replace(plain, recipe=replace(plain.recipe, finish=Finish.parse(spelling) if spelling else None)), "test", 0, PLACE
        )
        for spelling in ("", "adabn", "interpolate:0", "interpolate:0.5", "interpolate:1")
    }
    assert len({trial.model.base for trial in trials.values()}) == 1
    (first,), trained = run_trials.run_trials([trials[""]], frozenset([trials[""].key]), tmp_path)
    assert trained == 1
    records, trained = run_trials.run_trials([*trials.values()], frozenset(trial.key for trial in trials.values()), tmp_path)
    assert trained == 0
    assert not any(record.error for record in records)
    p_true_by_finish = dict(zip(trials, (record.predictions.p_true for record in records), strict=True))
    assert np.array_equal(p_true_by_finish[""], p_true_by_finish["interpolate:1"]) and np.array_equal(
        p_true_by_finish[""], first.predictions.p_true
    )
    assert len({tuple(p_true_by_finish[spelling]) for spelling in ("", "adabn", "interpolate:0", "interpolate:0.5")}) == 4
    cost = dict(zip(trials, (record.fit_seconds for record in records), strict=True))
    assert cost[""] == cost["adabn"] == first.fit_seconds < cost["interpolate:0.5"], (
        "interpolation trains the earlier phases again"
    )
