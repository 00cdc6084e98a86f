"""Evaluations of a trained network: source data, serving orders, divergence and finishing edits."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import BRIEF, CONTEXT, PREPROCESSING, WEIGHTS, make_spec, make_trial, make_workspace
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
from xferbench.core.sections import replace_flat
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
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    workspace = make_workspace(folder)
    workspace.data = make_npz(folder / "target.npz", test=130)
    workspace.source = AuxiliaryDataset(data=make_npz(folder / "s.npz", train=85, classes=10), classes=OUTPUTS)
    return workspace


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_pipeline(workspace, *phases, **more):
    return Pipeline(
        backbone=Backbone(arch="tiny-resnet", weights=WEIGHTS),
        data=PipelineData(
            target=workspace.data,
            train_size=60,
            test_size=None,
            train_preprocessing=PREPROCESSING,
            source=workspace.source,
            shifted=AuxiliaryDataset(data=workspace.data, classes=(0, 1, 2, 3)),
        ),
        recipe=Recipe(phases=phases),
        serving=Serving(preprocessing=PREPROCESSING),
        **more,
    )


def predict(workspace, pipeline, view, seed=0):
    """Return the predictions of a named view."""
    (record,), _ = run_trials.run_trials(
        [trial := make_study_trial(pipeline, view, seed, CONTEXT)], frozenset([trial.key]), workspace.cache
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
    p = module(preprocessing.to_tensor(torch.from_numpy(np.array(split.images)), PREPROCESSING)).double().softmax(1)
    return p[torch.arange(len(p)), torch.from_numpy(split.labels)].numpy()


def test_source_before_evaluates_the_checkpoint_on_source_images(workspace):
    predictions = predict(workspace, make_pipeline(workspace, Phase(**BRIEF)), "source-before", seed=3)
    test = domains.load_domain(workspace.source, PREPROCESSING, workspace.cache).test
    np.testing.assert_allclose(predictions.p_true, p_true(load_checkpoint(), test), rtol=1e-4, atol=1e-6)
    assert (predictions.example == test.example).all() and set(predictions.label) == set(OUTPUTS)
    assert predictions.probabilities.shape == (len(test.labels), 20)


def test_held_out_source_images_are_not_used_in_training(workspace):
    predictions = predict(workspace, make_pipeline(workspace, Phase(**BRIEF)), "source-held-out")
    source = domains.load_domain(workspace.source, PREPROCESSING, workspace.cache)
    assert set(predictions.example.tolist()) == set(domains.held_out_split(source).example.tolist())
    assert not set(predictions.example.tolist()) & set(domains.memory_split(source).example.tolist())


@pytest.mark.parametrize("views", [("source-before", "source"), ("source-probe-before", "source-probe")])
def test_a_frozen_backbone_forgets_nothing(workspace, views):
    probe = make_pipeline(workspace, Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=1e-2, **BRIEF))
    before, after = (predict(workspace, probe, view, seed=2) for view in views)
    for name in ("example", "predicted", "p_true", "p_max", "sum_p2", "probabilities"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name


def test_batchnorm_alone_can_forget_and_restoring_it_reverts_that(workspace):
    probe = make_spec(workspace, Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_TRAIN, lr=1e-2, **BRIEF))
    view = {"domain": workspace.source}
    before = get_record(workspace, replace_flat(probe, phases=()), edits=(SourceHead(),), **view).predictions.p_true
    after = get_record(workspace, probe, edits=(SourceHead(),), **view).predictions.p_true
    back = get_record(workspace, probe, edits=(RestoreBatchNorm(), SourceHead()), **view).predictions.p_true
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(back, before, rtol=1e-4, atol=1e-6)


def test_a_shifted_set_is_evaluated_with_the_head_of_the_target(workspace):
    pipeline = make_pipeline(workspace, Phase(**BRIEF))
    shifted, test = (predict(workspace, pipeline, view) for view in ("shifted", "test"))
    assert np.array_equal(shifted.p_true, test.p_true), "the shifted set is the target itself"
    relabeled = replace(
        pipeline, data=replace(pipeline.data, shifted=AuxiliaryDataset(data=workspace.data, classes=(3, 2, 1, 0)))
    )
    assert (predict(workspace, relabeled, "shifted").label == 3 - test.label).all()


def test_a_domain_with_unknown_classes_is_not_evaluated(workspace):
    with pytest.raises(ValueError, match=r"no \[source\] whose classes are known"):
        make_study_trial(
            replace(make_pipeline(workspace), data=replace(make_pipeline(workspace).data, source=None)), "source", 0, CONTEXT
        )
    unknown = replace(
        make_pipeline(workspace), data=replace(make_pipeline(workspace).data, shifted=AuxiliaryDataset(data=workspace.data))
    )
    with pytest.raises(ValueError, match=r"no \[shifted\] whose classes are known"):
        make_study_trial(unknown, "shifted", 0, CONTEXT)


def test_serving_orders_change_the_statistics_of_batches(workspace):
    spec = make_spec(workspace)
    labels = datasets.load_dataset(workspace.data, PREPROCESSING, None, workspace.cache).test.labels
    order = evaluate.serving_order(labels, by_class=True)
    assert sorted(order.tolist()) == list(range(len(labels))) and (np.diff(labels[order]) >= 0).all()
    shuffled = evaluate.serving_order(labels, by_class=False)
    assert sorted(shuffled.tolist()) == list(range(len(labels))) and (np.diff(labels[shuffled]) < 0).any()
    by_mode = {mode: get_record(workspace, spec, mode=mode).predictions for mode in (EVAL_MODE, TRAIN_MODE, TrainModeByClass())}
    assert all(np.array_equal(predictions.label, labels) for predictions in by_mode.values()), "in the order of the examples"
    for first_mode, second_mode in itertools.combinations(by_mode, 2):
        assert np.abs(by_mode[first_mode].p_true - by_mode[second_mode].p_true).max() > 0.01


def test_batches_by_class_equal_those_of_the_module(workspace):
    spec = make_spec(workspace)
    predictions = get_record(workspace, spec, mode=TrainModeByClass()).predictions
    dataset, _ = run_trials.training_inputs(spec, make_trial(spec), workspace.cache)
    state, _ = checkpoint_reader.read_saved(run_trials.weights_path(spec, CONTEXT, workspace.cache))
    module = backbones.build("tiny-resnet", 4)
    module.load_state_dict({name.removeprefix("last."): t for name, t in state.items() if name.startswith("last.")})
    order = evaluate.serving_order(dataset.test.labels, by_class=True)
    first = np.array_split(order, max(1, len(order) // evaluate.SERVING_BATCH))[0]
    expected = p_true(module.train(), datasets.take(dataset.test, first))
    np.testing.assert_allclose(predictions.p_true[first], expected, rtol=1e-3, atol=1e-5)


def load_trained(workspace, pipeline):
    """Return the network of a pipeline after its last step as a separate module, and the dataset."""
    spec = training_spec(pipeline, 0)
    dataset, _ = run_trials.training_inputs(spec, make_trial(spec), workspace.cache)
    state, _ = checkpoint_reader.read_saved(run_trials.weights_path(spec, CONTEXT, workspace.cache))
    module = backbones.build("tiny-resnet", 4).eval()
    module.load_state_dict({name.removeprefix("last."): t for name, t in state.items() if name.startswith("last.")})
    return module, dataset


def test_the_temperature_is_fitted_to_validation_images(workspace):
    pipeline = make_pipeline(workspace, Phase(lr=1e-2, **BRIEF))
    plain, tempered = (predict(workspace, pipeline, view) for view in ("test", "tempered"))
    module, dataset = load_trained(workspace, pipeline)
    _, held_out = datasets.train_validation_indices(dataset, 60, 0)
    validation = datasets.take(dataset.train, held_out)

    def logits(split):
        with torch.no_grad():
            return module(preprocessing.to_tensor(torch.from_numpy(np.array(split.images)), PREPROCESSING)).double().numpy()

    temperature = edits.fit_temperature(logits(validation), validation.labels)
    p = torch.from_numpy(logits(dataset.test) / temperature).softmax(1).numpy()
    np.testing.assert_allclose(tempered.p_true, p[np.arange(len(p)), dataset.test.labels], rtol=1e-3, atol=1e-5)
    assert abs(temperature - 1) > 0.01 and np.array_equal(tempered.predicted, plain.predicted)


def test_the_bias_of_each_class_is_fitted_to_validation_images(workspace):
    pipeline = make_pipeline(workspace, Phase(lr=1e-2, **BRIEF))
    fitted, on_validation = (predict(workspace, pipeline, view).p_true for view in ("bias-fitted", "validation-bias-fitted"))
    module, dataset = load_trained(workspace, pipeline)
    _, held_out = datasets.train_validation_indices(dataset, 60, 0)

    def logits(split):
        with torch.no_grad():
            return module(preprocessing.to_tensor(torch.from_numpy(np.array(split.images)), PREPROCESSING)).double().numpy()

    validation = datasets.take(dataset.train, held_out)
    bias = edits.fit_class_bias(logits(validation), validation.labels)
    p = torch.from_numpy(logits(dataset.test) + bias).softmax(1).numpy()
    np.testing.assert_allclose(fitted, p[np.arange(len(p)), dataset.test.labels], rtol=1e-3, atol=1e-5)
    p = torch.from_numpy(logits(validation) + bias).softmax(1).numpy()
    np.testing.assert_allclose(on_validation, p[np.arange(len(p)), validation.labels], rtol=1e-3, atol=1e-5)


def test_training_images_are_those_of_the_training_subset(workspace):
    pipeline = make_pipeline(workspace, Phase(**BRIEF))
    examples = {view: set(predict(workspace, pipeline, view).example.tolist()) for view in ("training", "validation", "test")}
    _, dataset = load_trained(workspace, pipeline)
    index, _ = datasets.train_validation_indices(dataset, 60, 0)
    assert examples["training"] == set(dataset.train.example[index].tolist())
    assert not examples["training"] & (examples["validation"] | examples["test"])


@pytest.mark.parametrize("view", ["source", "source-probe"])
def test_a_diverged_network_predicts_the_class_frequencies_of_the_source_on_the_source(workspace, view):
    predictions = predict(workspace, make_pipeline(workspace, DIVERGING), view)
    train = domains.load_domain(workspace.source, PREPROCESSING, workspace.cache).train.labels
    most_frequent = np.bincount(train).argmax()
    assert most_frequent in OUTPUTS and (predictions.predicted == most_frequent).all()
    share = np.bincount(train, minlength=20) / len(train)
    np.testing.assert_allclose(predictions.p_true, share[predictions.label], rtol=1e-6)


def test_a_diverged_network_predicts_the_class_frequencies_of_the_target_elsewhere(workspace):
    pipeline = make_pipeline(workspace, DIVERGING)
    for view in ("test", "shifted"):
        assert predict(workspace, pipeline, view).p_true == pytest.approx(0.25)


def test_unknown_examples_are_an_error(workspace):
    trial = make_trial(make_spec(workspace), examples="train")
    (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), workspace.cache)
    assert "no such examples" in record.error


LP_FT = (
    Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=1e-2, **BRIEF),
    Phase(batchnorm=BatchNormMomentum(momentum=0.5), lr=1e-2, **BRIEF),
)


def finish_tensors(workspace, finish, view, *phases, seed=0):
    """Return the tensors that a named view of a recipe with a finish evaluates, and the trial."""
    pipeline = make_pipeline(workspace, *phases or LP_FT)
    trial = make_study_trial(
        replace(pipeline, recipe=replace(pipeline.recipe, finish=Finish.parse(finish) if finish else None)), view, seed, CONTEXT
    )
    (model,), _ = run_trials._trained_models([trial.model.base], trial, workspace.cache)
    (model,) = run_trials._with_phase_start([trial.model.base], [model], trial, workspace.cache)
    return evaluate.edit_tensors(run_trials.load_model(trial, model, workspace.cache), trial.model.edits, trial.view), trial


def is_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_adabn_changes_only_statistics_and_depends_on_the_domain(workspace):
    plain, _ = finish_tensors(workspace, "", "test")
    by_view = {view: finish_tensors(workspace, "adabn", view)[0] for view in ("test", "validation", "shifted", "source")}
    (layers,) = {frozenset(batchnorm.statistics_names(backbones.build("tiny-resnet", 4)))}
    changed = {name for name in plain if not torch.equal(plain[name], by_view["test"][name])}
    assert changed and changed <= layers
    assert is_equal(by_view["test"], by_view["validation"])
    body = {name for name in plain if not name.startswith("linear.")}
    for view in ("shifted", "source"):
        assert {name for name in body if not torch.equal(plain[name], by_view[view][name])} <= layers
    mean = "bn1.running_mean"
    assert len({tuple(tensors[mean].tolist()) for tensors in (plain, *by_view.values())}) == 4


def test_adabn_uses_the_preprocessing_of_the_view_and_no_held_out_images(workspace, monkeypatch):
    calls, original = [], evaluate.recalibrate
    monkeypatch.setattr(
        evaluate, "recalibrate", lambda images, *rest: calls.append((images, rest[0])) or original(images, *rest)
    )
    bgr = replace(PREPROCESSING, channels="bgr")
    pipeline = replace(
        make_pipeline(workspace, *LP_FT), serving=replace(make_pipeline(workspace, *LP_FT).serving, preprocessing=bgr)
    )
    pipeline = replace(pipeline, recipe=replace(pipeline.recipe, finish=Finish.parse("adabn")))
    predict(workspace, pipeline, "test")
    predict(workspace, pipeline, "shifted")
    predict(workspace, pipeline, "source-held-out")
    assert [prepared for _, prepared in calls] == [bgr, bgr, bgr]
    assert [len(images) for images, _ in calls] == [60, 60, 43]
    held_out = domains.held_out_split(domains.load_domain(workspace.source, PREPROCESSING, workspace.cache)).images
    assert not {image.tobytes() for image in held_out} & {image.numpy().tobytes() for image in calls[2][0]}


def test_interpolation_is_bit_identical_at_both_ends(workspace):
    plain, trial = finish_tensors(workspace, "", "test")
    assert is_equal(finish_tensors(workspace, "interpolate:1", "test")[0], plain)
    (shorter,), _ = run_trials._trained_models([replace_flat(trial.model.base, phases=LP_FT[:1])], trial, workspace.cache)
    assert is_equal(finish_tensors(workspace, "interpolate:0", "test")[0], shorter.last)
    half, _ = finish_tensors(workspace, "interpolate:0.5", "test")
    for name, tensor in half.items():
        between = torch.lerp(shorter.last[name], plain[name], 0.5) if tensor.is_floating_point() else plain[name]
        assert torch.equal(tensor, between)
    assert not torch.equal(half["linear.weight"], plain["linear.weight"]), "the head too"
    assert not torch.equal(half["bn1.running_var"], plain["bn1.running_var"]), "and running statistics"


def test_the_phase_start_equals_the_tensors_before_the_last_phase_in_a_group_too(workspace, monkeypatch):
    adapted = (
        LP_FT[0],
        replace(LP_FT[1], trainable=ALL_LAYERS),
        Phase(trainable=Trainable.parse("adapter:2"), batchnorm=BATCHNORM_EVAL, **BRIEF),
    )
    specs = [make_spec(workspace, *adapted, seed=seed) for seed in range(2)]
    calls, original = [], loop._train_phase

    def record_call(run, stacked, **more):
        if run.index == len(adapted) - 1:
            calls.append({name: tensor.clone() for name, tensor in stacked.items()})
        yield from original(run, stacked, **more)

    monkeypatch.setattr(loop, "_train_phase", record_call)
    trial, cache = make_trial(specs[0]), workspace.cache / "begun"
    models, _ = run_trials._trained_models(specs, trial, cache)
    for member, model in enumerate(run_trials._with_phase_start(specs, models, trial, cache)):
        assert is_equal(model.begun.last, {name: tensor[member] for name, tensor in calls[0].items()})


def test_the_start_of_a_single_phase_is_the_initial_network(workspace):
    phase = Phase(**BRIEF)
    tensors, trial = finish_tensors(workspace, "interpolate:0", "test", phase)
    (whole,), _ = run_trials._trained_models([trial.model.base], trial, workspace.cache)
    assert is_equal(tensors, whole.before)


def test_a_finish_uses_the_weights_in_the_cache(workspace, tmp_path):
    plain = make_pipeline(workspace, *LP_FT)
    trials = {
        spelling: make_study_trial(
            replace(plain, recipe=replace(plain.recipe, finish=Finish.parse(spelling) if spelling else None)),
            "test",
            0,
            CONTEXT,
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
