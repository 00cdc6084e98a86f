"""From trials to records: training, cached weights, evaluation and crashes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_loop import BRIEF, CONTEXT, PREPROCESSING, make_spec, make_trial, make_workspace

from xferbench.core.errors import UserError
from xferbench.core.interventions import (
    BATCHNORM_EVAL,
    EVAL_MODE,
    HEAD_ONLY,
    RANDOM,
    TRAIN_MODE,
    BatchNormMomentum,
    Edit,
    GhostBatchNorm,
    RecalibrateBatchNorm,
    Regularizer,
    RestoreBatchNorm,
)
from xferbench.core.pipeline import Phase
from xferbench.core.sections import replace_flat
from xferbench.core.trial import ModelSpec, Trial
from xferbench.lab.data import datasets, preprocessing
from xferbench.lab.evaluation import evaluate
from xferbench.lab.models import backbones, checkpoint_reader, graph_split
from xferbench.lab.training import loop
from xferbench.lab.worker import run_trials
from xferbench.runner.engines import local

PROBE = Phase(trainable=HEAD_ONLY, batchnorm=BATCHNORM_EVAL, lr=1e-2, **BRIEF)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def compute_records(workspace, *trials, missing=None, cache=None):
    return run_trials.run_trials(trials, frozenset(missing or (trial.key for trial in trials)), cache or workspace.cache)


def get_record(workspace, spec, *, edits=(), **view):
    """Return one record of one training, which must not have crashed."""
    trial = replace(make_trial(spec, **view), model=ModelSpec(base=spec, edits=edits))
    (record,), _ = compute_records(workspace, trial)
    assert not record.error
    return record


def is_same_record(first, second):
    """Check whether two records are equal except for their cost."""
    arrays = [{name: getattr(record.predictions, name) for name in record.predictions.__slots__} for record in (first, second)]
    is_equal = all(np.array_equal(array, arrays[1][name]) for name, array in arrays[0].items())
    return is_equal and (first.key, first.fit, first.curve, first.scalars) == (
        second.key,
        second.fit,
        second.curve,
        second.scalars,
    )


def load_trained_module(workspace, spec, *, mode=EVAL_MODE, step="last", restored=False):
    """Return the trained network as a separate module, and the dataset."""
    dataset = datasets.load_dataset(spec.data.dataset, PREPROCESSING, None, workspace.cache)
    module = backbones.build("tiny-resnet", len(dataset.classes))
    state, _ = checkpoint_reader.read_saved(run_trials.weights_path(spec, CONTEXT, workspace.cache))
    tensors = {name.removeprefix(f"{step}."): tensor for name, tensor in state.items() if name.startswith(f"{step}.")}
    if restored:
        _, network = run_trials.training_inputs(spec, make_trial(spec), workspace.cache)
        start = run_trials.start_tensors(spec, network, make_trial(spec), workspace.cache)
        tensors |= {name: tensor for name, tensor in start.items() if "running" in name or "num_batches" in name}
    module.load_state_dict(tensors)
    return module.train(mode == TRAIN_MODE), dataset


@torch.no_grad()
def p_true(module, split, form=PREPROCESSING):
    p = module(preprocessing.to_tensor(torch.from_numpy(np.array(split.images)), form)).double().softmax(1)
    return p[torch.arange(len(p)), torch.from_numpy(split.labels)].numpy()


def test_only_missing_trials_get_a_record_but_the_whole_group_is_trained(workspace, tmp_path):
    trials = [make_trial(make_spec(workspace, seed=seed), limit=limit) for seed in range(3) for limit in (10, 20)]
    records, trained = compute_records(workspace, *trials, missing=[trials[1].key, trials[4].key], cache=tmp_path)
    assert [record.key for record in records] == [trials[1].key, trials[4].key]
    assert [len(record.predictions.label) for record in records] == [20, 10]
    assert trained == 3
    assert all(run_trials.weights_path(trial.model.base, CONTEXT, tmp_path).is_file() for trial in trials)


def test_weights_are_loaded_and_evicted_weights_are_trained_again_to_the_same_record(workspace, tmp_path):
    spec = make_spec(workspace, Phase(**BRIEF), PROBE)
    trials = [make_trial(spec), make_trial(spec, step="best"), make_trial(spec, examples="validation")]
    first, trained = compute_records(workspace, *trials, cache=tmp_path)
    assert trained == 1
    recalled, trained = compute_records(workspace, *trials, cache=tmp_path)
    assert trained == 0
    run_trials.weights_path(spec, CONTEXT, tmp_path).unlink()
    retrained, trained = compute_records(workspace, *trials, cache=tmp_path)
    assert trained == 1
    for record, *others in zip(first, recalled, retrained, strict=True):
        assert all(is_same_record(record, other) for other in others)
        assert record.fit_seconds > 0
    assert recalled[0].fit_seconds == first[0].fit_seconds, "the seconds of the training"


def test_another_process_computes_a_bit_identical_record(workspace, tmp_path):
    specs = [make_spec(workspace, Phase(batchnorm=GhostBatchNorm(examples=4), **BRIEF), PROBE, seed=seed) for seed in range(2)]
    trials = tuple(make_trial(spec) for spec in specs)
    records, _ = compute_records(workspace, *trials, cache=tmp_path / "here")
    with local.start_workers(1) as call:
        worker_records, _ = call(
            "xferbench.lab.worker.run_trials:run_trials", trials, frozenset(trial.key for trial in trials), tmp_path / "there"
        ).result()
    assert all(is_same_record(*pair) for pair in zip(records, worker_records, strict=True))
    for spec in specs:
        files = [run_trials.weights_path(spec, CONTEXT, tmp_path / name) for name in ("here", "there")]
        weights = [checkpoint_reader.read_saved(file)[0] for file in files]
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_test_predictions_equal_those_of_the_module(workspace):
    spec = make_spec(workspace)
    record = get_record(workspace, spec)
    module, dataset = load_trained_module(workspace, spec)
    np.testing.assert_allclose(record.predictions.p_true, p_true(module, dataset.test), rtol=1e-4, atol=1e-6)
    assert (record.predictions.example == dataset.test.example).all()
    assert (record.predictions.label == dataset.test.labels).all()
    limited = get_record(workspace, spec, limit=7).predictions
    assert (limited.example == dataset.test.example[:7]).all()


def test_cached_activations_of_a_frozen_backbone_give_the_same_result(workspace, monkeypatch):
    spec = make_spec(workspace, PROBE)
    record = get_record(workspace, spec)
    monkeypatch.setattr(graph_split, "split_at", lambda *_: None)
    np.testing.assert_allclose(get_record(workspace, spec).predictions.p_true, record.predictions.p_true, rtol=1e-4, atol=1e-6)
    module, dataset = load_trained_module(workspace, spec)
    np.testing.assert_allclose(p_true(module, dataset.test), record.predictions.p_true, rtol=1e-4, atol=1e-6)


def test_validation_uses_the_held_out_examples_of_the_training(workspace):
    spec = make_spec(workspace, seed=5)
    record = get_record(workspace, spec, examples="validation")
    module, dataset = load_trained_module(workspace, spec)
    _, index = datasets.train_validation_indices(dataset, spec.data.train_size, spec.seed)
    held_out = datasets.take(dataset.train, index)
    assert (record.predictions.example == held_out.example).all()
    np.testing.assert_allclose(record.predictions.p_true, p_true(module, held_out), rtol=1e-4, atol=1e-6)
    assert record.curve[-1][2] == pytest.approx((record.predictions.predicted == record.predictions.label).mean())


def test_another_serving_preprocessing_changes_only_the_inputs(workspace):
    spec, raw = make_spec(workspace), replace(PREPROCESSING, scale=1.0)
    trial = make_trial(spec)
    (_, record), _ = compute_records(workspace, trial, replace(trial, view=replace(trial.view, preprocessing=raw)))
    module, dataset = load_trained_module(workspace, spec)
    np.testing.assert_allclose(record.predictions.p_true, p_true(module, dataset.test, raw), rtol=1e-3, atol=1e-5)


def test_training_mode_uses_statistics_of_shuffled_batches_and_changes_nothing_permanently(workspace):
    spec = make_spec(workspace)
    eval_before = get_record(workspace, spec)
    record = get_record(workspace, spec, mode=TRAIN_MODE)
    module, dataset = load_trained_module(workspace, spec, mode=TRAIN_MODE)
    order = np.random.default_rng(0).permutation(len(dataset.test.labels))
    expected = np.empty(len(order))
    for part in np.array_split(order, max(1, len(order) // evaluate.SERVING_BATCH)):
        expected[part] = p_true(module, datasets.take(dataset.test, part))
    np.testing.assert_allclose(record.predictions.p_true, expected, rtol=1e-3, atol=1e-5)
    assert not np.allclose(record.predictions.p_true, eval_before.predictions.p_true, atol=0.01)
    assert is_same_record(get_record(workspace, spec), eval_before)


def test_restored_statistics_are_those_before_training(workspace):
    spec = make_spec(workspace)
    record = get_record(workspace, spec, edits=(RestoreBatchNorm(),))
    module, dataset = load_trained_module(workspace, spec, restored=True)
    np.testing.assert_allclose(record.predictions.p_true, p_true(module, dataset.test), rtol=1e-4, atol=1e-6)
    assert not np.allclose(record.predictions.p_true, get_record(workspace, spec).predictions.p_true, atol=0.01)


def test_recalibrated_statistics_are_means_over_the_training_subset(workspace):
    spec = make_spec(workspace)
    record = get_record(workspace, spec, edits=(RecalibrateBatchNorm(),))
    module, dataset = load_trained_module(workspace, spec)
    index, _ = datasets.train_validation_indices(dataset, spec.data.train_size, spec.seed)
    for layer in module.modules():
        if hasattr(layer, "running_mean"):
            layer.reset_running_stats()
            layer.momentum = None
    p_true(module.train(), datasets.take(dataset.train, np.random.default_rng(0).permutation(index)))
    np.testing.assert_allclose(record.predictions.p_true, p_true(module.eval(), dataset.test), rtol=1e-3, atol=1e-5)


def test_edits_apply_in_order(workspace):
    spec = make_spec(workspace)
    both = get_record(workspace, spec, edits=(RecalibrateBatchNorm(), RestoreBatchNorm()))
    assert np.array_equal(both.predictions.p_true, get_record(workspace, spec, edits=(RestoreBatchNorm(),)).predictions.p_true)


def test_the_best_step_comes_from_the_same_training(workspace, monkeypatch):
    scores = iter([0.1, 0.8, 0.5, 0.5, 0.2])
    monkeypatch.setattr(loop, "_accuracy", lambda *_: next(scores))
    spec = make_spec(workspace, Phase(steps=5, batch_size=16), seed=77)
    last, best = compute_records(workspace, make_trial(spec), make_trial(spec, step="best"))[0]
    assert last.fit == best.fit
    assert last.key != best.key
    for record, step in ((last, "last"), (best, "best")):
        module, dataset = load_trained_module(workspace, spec, step=step)
        np.testing.assert_allclose(record.predictions.p_true, p_true(module, dataset.test), rtol=1e-4, atol=1e-6)
    assert not np.allclose(last.predictions.p_true, best.predictions.p_true)


@pytest.mark.parametrize("view", [{}, {"mode": TRAIN_MODE}, {"examples": "validation"}])
def test_predictions_are_probabilities(view, workspace):
    predictions = get_record(workspace, make_spec(workspace), **view).predictions
    rows = np.arange(len(predictions.label))
    assert (predictions.p_max >= predictions.p_true).all()
    assert (predictions.sum_p2 <= 1 + 1e-6).all()
    assert (predictions.sum_p2 >= 0.25 - 1e-6).all()
    np.testing.assert_allclose(predictions.probabilities.astype(float).sum(1), 1, atol=4 * 2**-11)
    np.testing.assert_allclose(predictions.probabilities[rows, predictions.label], predictions.p_true, atol=2**-11)
    np.testing.assert_allclose(predictions.probabilities[rows, predictions.predicted], predictions.p_max, atol=2**-11)
    assert ((predictions.predicted == predictions.label) == (predictions.p_true == predictions.p_max)).all()
    assert predictions.probabilities.dtype == np.float16


def test_with_many_classes_no_probabilities_are_stored(tmp_path):
    workspace = make_workspace(tmp_path, classes=21, train=210, test=63)
    predictions = get_record(workspace, make_spec(workspace))
    assert predictions.predictions.probabilities.shape == (63, 0)
    assert (predictions.predictions.p_max >= predictions.predictions.p_true).all()


def test_records_contain_the_groups(tmp_path):
    workspace = make_workspace(tmp_path, train_groups=np.arange(120) // 4, test_groups=np.arange(60) // 3)
    predictions = get_record(workspace, make_spec(workspace)).predictions
    assert np.unique(predictions.group, return_counts=True)[1].tolist() == [3] * 20


def test_a_diverged_network_predicts_the_class_frequencies_of_its_training_subset(tmp_path):
    workspace = make_workspace(tmp_path, train_labels=np.repeat([0, 1, 2, 3], [60, 30, 20, 10]))
    spec = make_spec(workspace, Phase(lr=1e6, steps=12, batch_size=16))
    for view in ({}, {"examples": "validation"}, {"mode": TRAIN_MODE}, {"step": "best"}):
        record = get_record(workspace, spec, **view)
        assert record.scalars["diverged"] == 1.0
        predictions = record.predictions
        np.testing.assert_allclose(predictions.probabilities[0], [0.5, 0.25, 1 / 6, 1 / 12], atol=1e-3)
        assert (predictions.predicted == 0).all()
        np.testing.assert_allclose(predictions.p_true, np.array([0.5, 0.25, 1 / 6, 1 / 12])[predictions.label], atol=1e-6)


def test_only_non_finite_logits_count_as_diverged(workspace, monkeypatch):
    assert get_record(workspace, make_spec(workspace)).scalars == {"diverged": 0.0}
    original = evaluate._compute_logits

    def overflowing(*arguments):
        logits = original(*arguments)
        logits[3, 1] = np.inf
        return logits

    monkeypatch.setattr(evaluate, "_compute_logits", overflowing)
    record = get_record(workspace, make_spec(workspace))
    assert record.scalars == {"diverged": 1.0}
    np.testing.assert_allclose(record.predictions.p_max, 0.25, atol=0.02)


def measure_change(context):
    return {
        "moved": (context.after["conv1.weight"] - context.before["conv1.weight"]).abs().max(),
        "layers": len(context.network.layout.groups),
    }


def crash_in_measure(context):
    raise ZeroDivisionError("on purpose")


def make_measure_trial(workspace, function):
    return make_trial(make_spec(workspace), measure=f"{__name__}:{function.__name__}@1")


def test_a_measure_gets_tensors_before_and_after_and_returns_floats(workspace):
    (record,), _ = compute_records(workspace, make_measure_trial(workspace, measure_change))
    assert record.predictions is None
    assert {type(value) for value in record.scalars.values()} == {float}
    assert record.scalars["moved"] > 0
    assert record.scalars["layers"] == 5


def test_a_crash_in_a_measure_becomes_an_error_of_its_record_alone(workspace):
    trials = [
        make_trial(make_spec(workspace)),
        make_measure_trial(workspace, crash_in_measure),
        make_measure_trial(workspace, measure_change),
    ]
    (test, crashed, other), _ = compute_records(workspace, *trials)
    assert not test.error
    assert not other.error
    assert crashed.error.startswith("ZeroDivisionError: on purpose (test_run_trials.py:")
    assert crashed.key == trials[1].key
    assert crashed.predictions is None


def test_an_unknown_measure_is_an_error(workspace):
    (record,), _ = compute_records(workspace, make_trial(make_spec(workspace), measure="no_such_module:f@1"))
    assert "no_such_module" in record.error


def test_a_crash_in_training_is_an_error_of_every_trial_and_stores_no_weights(workspace, tmp_path, monkeypatch):
    def crash(*_):
        raise FloatingPointError("on purpose")

    monkeypatch.setattr(loop, "train", crash)
    trials = [make_trial(make_spec(workspace, seed=seed)) for seed in range(2)]
    records, trained = compute_records(workspace, *trials, cache=tmp_path)
    assert [record.key for record in records] == [trial.key for trial in trials]
    assert all(record.error.startswith("FloatingPointError: on purpose") for record in records)
    assert trained == 0
    assert not (tmp_path / "weights").exists()


def test_an_unknown_view_is_an_error(workspace):
    trials = [make_trial(make_spec(workspace), **view) for view in ({"examples": "train"}, {"step": "first"})]
    assert all(record.error for record in compute_records(workspace, *trials)[0])


@pytest.mark.parametrize("error", [UserError("no such trainable"), OSError(28, "No space left on device")])
def test_user_errors_and_a_full_disk_are_raised(error, workspace, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(loop, "train", fail)
    with pytest.raises(type(error)):
        compute_records(workspace, make_trial(make_spec(workspace)), cache=tmp_path)


def test_a_training_that_starts_from_another_takes_its_body_but_not_its_head(workspace):
    source = make_spec(workspace, seed=9, init=RANDOM, labels="shuffled")
    spec = replace_flat(make_spec(workspace, PROBE), start=source)
    get_record(workspace, spec)
    (before, _), (after, _) = (load_trained_module(workspace, which) for which in (source, spec))
    body = [name for name in before.state_dict() if not name.startswith("linear")]
    assert all(torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in body)
    assert not torch.equal(before.linear.weight, after.linear.weight)
    get_record(workspace, source, examples="validation")


def test_a_diverged_start_is_an_error_of_the_record(workspace):
    source = make_spec(workspace, Phase(lr=1e6, steps=12, batch_size=16), seed=9, init=RANDOM)
    (record,), _ = compute_records(workspace, make_trial(replace_flat(make_spec(workspace, PROBE), start=source)))
    assert "diverged" in record.error


def test_records_do_not_depend_on_the_order_of_trials(workspace, tmp_path):
    trials = [
        Trial(model=ModelSpec(base=spec, edits=edits), view=make_trial(spec).view, context=CONTEXT)
        for spec in (
            make_spec(workspace, Phase(batchnorm=BatchNormMomentum(momentum=0.5), **BRIEF)),
            make_spec(workspace, PROBE),
        )
        for edits in ((), (Edit.parse("batchnorm:recalibrated@2"),))
    ]
    forward = [compute_records(workspace, trial, cache=tmp_path / "a")[0][0] for trial in trials]
    backward = [compute_records(workspace, trial, cache=tmp_path / "b")[0][0] for trial in reversed(trials)][::-1]
    assert all(is_same_record(*pair) for pair in zip(forward, backward, strict=True))


def test_a_teacher_is_trained_once_and_loaded_for_each_student(workspace, tmp_path, monkeypatch):
    teachers = [make_spec(workspace, PROBE, seed=seed) for seed in range(2)]
    compute_records(workspace, *map(make_trial, teachers), cache=tmp_path)
    calls, original = [], loop.train
    monkeypatch.setattr(loop, "train", lambda specs, *rest: calls.append(tuple(specs)) or original(specs, *rest))
    students = tuple(
        make_spec(workspace, init=RANDOM, regularizer=Regularizer.parse("distill:0.5"), seed=spec.seed, teacher=spec)
        for spec in teachers
    )
    records, trained = compute_records(workspace, *map(make_trial, students), cache=tmp_path)
    assert (calls, trained) == ([students], 2)
    assert not any(record.error for record in records)
    retrained, trained = compute_records(workspace, *map(make_trial, students), cache=tmp_path)
    assert (len(calls), trained) == (1, 0)
    assert all(is_same_record(*pair) for pair in zip(records, retrained, strict=True))


def test_training_seconds_of_a_student_include_its_teacher(workspace, tmp_path):
    teacher = make_spec(workspace, PROBE)
    student = make_spec(workspace, init=RANDOM, regularizer=Regularizer.parse("distill:0.5"), teacher=teacher)
    (taught,), _ = compute_records(workspace, make_trial(student), cache=tmp_path)
    (teaching,), _ = compute_records(workspace, make_trial(teacher), cache=tmp_path)
    (tensors,), _ = run_trials._trained_models([student], make_trial(student), tmp_path)
    assert taught.fit_seconds == tensors.seconds + teaching.fit_seconds > teaching.fit_seconds > 0


def test_a_diverged_teacher_is_an_error_of_its_students(workspace, tmp_path):
    teacher = make_spec(workspace, replace(PROBE, lr=1e38, optimizer="sgd"))
    student = make_spec(workspace, init=RANDOM, regularizer=Regularizer.parse("distill:0.5"), teacher=teacher)
    (record,), _ = compute_records(workspace, make_trial(student), cache=tmp_path)
    assert "the training of the teacher diverged" in record.error
