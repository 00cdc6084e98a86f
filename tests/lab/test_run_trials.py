"""From trials to records: what is trained, what is recalled, how a model is looked at, and what a crash becomes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_loop import BRIEF, PLACE, READY, make_fit, make_trial, make_world

from xferbench.core.errors import UserError
from xferbench.core.interventions import HEAD_ONLY, Regularizer
from xferbench.core.pipeline import Phase
from xferbench.core.trial import ModelSpec, Trial
from xferbench.lab.data import datasets, preprocessing
from xferbench.lab.evaluation import evaluate
from xferbench.lab.models import backbones, checkpoint_reader
from xferbench.lab.training import loop
from xferbench.lab.worker import run_trials
from xferbench.runner.engines import local

PROBE = Phase(trainable=HEAD_ONLY, batchnorm="eval", lr=1e-2, **BRIEF)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ask(world, *trials, missing=None, cache=None):
    return run_trials.run_trials(trials, frozenset(missing or (trial.key for trial in trials)), cache or world.cache)


def look(world, one, *, edits=(), **view):
    """One record of one fit, which must not have crashed."""
    trial = replace(make_trial(one, **view), model=ModelSpec(base=one, edits=edits))
    (record,), _ = ask(world, trial)
    assert not record.error
    return record


def same(one, other):
    """Whether two records say the same, but for what they cost."""
    told = [{name: getattr(record.predictions, name) for name in record.predictions.__slots__} for record in (one, other)]
    equal = all(np.array_equal(told[0][name], told[1][name]) for name in told[0])
    return equal and (one.key, one.fit, one.curve, one.scalars) == (other.key, other.fit, other.curve, other.scalars)


def by_hand(world, one, *, mode="eval", step="last", restored=False):
    """The network that a fit left, as a module of its own, and the dataset."""
    dataset = datasets.load_dataset(one.data, READY, None, world.cache)
    module = backbones.build("tiny-resnet", len(dataset.classes))
    state, _ = checkpoint_reader.read_saved(run_trials.weights_path(one, PLACE, world.cache))
    own = {name.removeprefix(f"{step}."): tensor for name, tensor in state.items() if name.startswith(f"{step}.")}
    if restored:
        _, network = run_trials.training_inputs(one, make_trial(one), world.cache)
        start = run_trials.start_tensors(one, network, make_trial(one), world.cache)
        own |= {name: tensor for name, tensor in start.items() if "running" in name or "num_batches" in name}
    module.load_state_dict(own)
    return module.train(mode == "training"), dataset


@torch.no_grad()
def p_true(module, split, ready=READY):
    p = module(preprocessing.to_tensor(torch.from_numpy(np.array(split.images)), ready)).double().softmax(1)
    return p[torch.arange(len(p)), torch.from_numpy(split.labels)].numpy()


def test_only_what_is_missing_is_answered_though_the_whole_group_is_trained(world, tmp_path):
    trials = [make_trial(make_fit(world, seed=seed), limit=limit) for seed in range(3) for limit in (10, 20)]
    records, trained = ask(world, *trials, missing=[trials[1].key, trials[4].key], cache=tmp_path)
    assert [record.key for record in records] == [trials[1].key, trials[4].key]
    assert [len(record.predictions.label) for record in records] == [20, 10]
    assert trained == 3
    assert all(run_trials.weights_path(trial.model.base, PLACE, tmp_path).is_file() for trial in trials)


def test_what_was_trained_is_recalled_and_what_was_evicted_is_trained_again_to_the_same_record(world, tmp_path):
    one = make_fit(world, Phase(**BRIEF), PROBE)
    trials = [make_trial(one), make_trial(one, step="best"), make_trial(one, examples="validation")]
    first, trained = ask(world, *trials, cache=tmp_path)
    assert trained == 1
    recalled, trained = ask(world, *trials, cache=tmp_path)
    assert trained == 0
    run_trials.weights_path(one, PLACE, tmp_path).unlink()
    again, trained = ask(world, *trials, cache=tmp_path)
    assert trained == 1
    for record, *others in zip(first, recalled, again, strict=True):
        assert all(same(record, other) for other in others)
        assert record.fit_seconds > 0
    assert recalled[0].fit_seconds == first[0].fit_seconds, "what it cost when it was trained"


def test_another_process_comes_to_the_same_record_bit_for_bit(world, tmp_path):
    fits = [make_fit(world, Phase(batchnorm="ghost:4", **BRIEF), PROBE, seed=seed) for seed in range(2)]
    trials = tuple(make_trial(one) for one in fits)
    here, _ = ask(world, *trials, cache=tmp_path / "here")
    with local.start_workers(1) as call:
        there, _ = call(
            "xferbench.lab.worker.run_trials:run_trials", trials, frozenset(trial.key for trial in trials), tmp_path / "there"
        ).result()
    assert all(same(*pair) for pair in zip(here, there, strict=True))
    for one in fits:
        files = [run_trials.weights_path(one, PLACE, tmp_path / name) for name in ("here", "there")]
        weights = [checkpoint_reader.read_saved(file)[0] for file in files]
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_view_of_the_test_set_is_what_the_network_says_of_it(world):
    one = make_fit(world)
    record = look(world, one)
    module, dataset = by_hand(world, one)
    np.testing.assert_allclose(record.predictions.p_true, p_true(module, dataset.test), rtol=1e-4, atol=1e-6)
    assert (record.predictions.example == dataset.test.example).all()
    assert (record.predictions.label == dataset.test.labels).all()
    some = look(world, one, limit=7).predictions
    assert (some.example == dataset.test.example[:7]).all()


def test_a_frozen_backbone_is_looked_at_through_its_cached_activations_with_the_same_result(world, monkeypatch):
    one = make_fit(world, PROBE)
    record = look(world, one)
    monkeypatch.setattr(backbones, "split_at", lambda *_: None)
    np.testing.assert_allclose(look(world, one).predictions.p_true, record.predictions.p_true, rtol=1e-4, atol=1e-6)
    module, dataset = by_hand(world, one)
    np.testing.assert_allclose(p_true(module, dataset.test), record.predictions.p_true, rtol=1e-4, atol=1e-6)


def test_validation_is_the_fits_own_held_out_examples(world):
    one = make_fit(world, seed=5)
    record = look(world, one, examples="validation")
    module, dataset = by_hand(world, one)
    _, index = datasets.train_validation_indices(dataset, one.train_size, one.seed)
    held_out = datasets.take(dataset.train, index)
    assert (record.predictions.example == held_out.example).all()
    np.testing.assert_allclose(record.predictions.p_true, p_true(module, held_out), rtol=1e-4, atol=1e-6)
    assert record.curve[-1][2] == pytest.approx((record.predictions.predicted == record.predictions.label).mean())


def test_served_otherwise_it_is_the_same_network_on_other_values(world):
    one, raw = make_fit(world), replace(READY, scale=1.0)
    trial = make_trial(one)
    (_, record), _ = ask(world, trial, replace(trial, view=replace(trial.view, preprocessing=raw)))
    module, dataset = by_hand(world, one)
    np.testing.assert_allclose(record.predictions.p_true, p_true(module, dataset.test, raw), rtol=1e-3, atol=1e-5)


def test_train_mode_uses_the_statistics_of_shuffled_batches_and_moves_nothing_that_lasts(world):
    one = make_fit(world)
    eval_before = look(world, one)
    record = look(world, one, mode="training")
    module, dataset = by_hand(world, one, mode="training")
    order = np.random.default_rng(0).permutation(len(dataset.test.labels))
    expected = np.empty(len(order))
    for part in np.array_split(order, max(1, len(order) // evaluate.SERVING_BATCH)):
        expected[part] = p_true(module, datasets.take(dataset.test, part))
    np.testing.assert_allclose(record.predictions.p_true, expected, rtol=1e-3, atol=1e-5)
    assert not np.allclose(record.predictions.p_true, eval_before.predictions.p_true, atol=0.01)
    assert same(look(world, one), eval_before)


def test_restored_statistics_are_those_from_before_training(world):
    one = make_fit(world)
    record = look(world, one, edits=("batchnorm:restored",))
    module, dataset = by_hand(world, one, restored=True)
    np.testing.assert_allclose(record.predictions.p_true, p_true(module, dataset.test), rtol=1e-4, atol=1e-6)
    assert not np.allclose(record.predictions.p_true, look(world, one).predictions.p_true, atol=0.01)


def test_recalibrated_statistics_are_the_mean_over_the_training_subset(world):
    one = make_fit(world)
    record = look(world, one, edits=("batchnorm:recalibrated@2",))
    module, dataset = by_hand(world, one)
    index, _ = datasets.train_validation_indices(dataset, one.train_size, one.seed)
    for layer in module.modules():
        if hasattr(layer, "running_mean"):
            layer.reset_running_stats()
            layer.momentum = None
    p_true(module.train(), datasets.take(dataset.train, np.random.default_rng(0).permutation(index)))
    np.testing.assert_allclose(record.predictions.p_true, p_true(module.eval(), dataset.test), rtol=1e-3, atol=1e-5)


def test_edits_follow_one_another(world):
    one = make_fit(world)
    both = look(world, one, edits=("batchnorm:recalibrated@2", "batchnorm:restored"))
    assert np.array_equal(both.predictions.p_true, look(world, one, edits=("batchnorm:restored",)).predictions.p_true)


def test_the_best_step_is_a_view_of_the_same_fit(world, monkeypatch):
    scores = iter([0.1, 0.8, 0.5, 0.5, 0.2])
    monkeypatch.setattr(loop, "_accuracy", lambda *_: next(scores))
    one = make_fit(world, Phase(steps=5, batch_size=16), seed=77)
    last, best = ask(world, make_trial(one), make_trial(one, step="best"))[0]
    assert last.fit == best.fit
    assert last.key != best.key
    for record, step in ((last, "last"), (best, "best")):
        module, dataset = by_hand(world, one, step=step)
        np.testing.assert_allclose(record.predictions.p_true, p_true(module, dataset.test), rtol=1e-4, atol=1e-6)
    assert not np.allclose(last.predictions.p_true, best.predictions.p_true)


@pytest.mark.parametrize("view", [{}, {"mode": "training"}, {"examples": "validation"}])
def test_predictions_are_probabilities(view, world):
    told = look(world, make_fit(world), **view).predictions
    rows = np.arange(len(told.label))
    assert (told.p_max >= told.p_true).all()
    assert (told.sum_p2 <= 1 + 1e-6).all()
    assert (told.sum_p2 >= 0.25 - 1e-6).all()
    np.testing.assert_allclose(told.probabilities.astype(float).sum(1), 1, atol=4 * 2**-11)
    np.testing.assert_allclose(told.probabilities[rows, told.label], told.p_true, atol=2**-11)
    np.testing.assert_allclose(told.probabilities[rows, told.predicted], told.p_max, atol=2**-11)
    assert ((told.predicted == told.label) == (told.p_true == told.p_max)).all()
    assert told.probabilities.dtype == np.float16


def test_of_many_classes_only_what_every_metric_needs_is_kept(tmp_path):
    world = make_world(tmp_path, classes=21, train=210, test=63)
    told = look(world, make_fit(world))
    assert told.predictions.probabilities.shape == (63, 0)
    assert (told.predictions.p_max >= told.predictions.p_true).all()


def test_groups_go_along(tmp_path):
    world = make_world(tmp_path, train_groups=np.arange(120) // 4, test_groups=np.arange(60) // 3)
    told = look(world, make_fit(world)).predictions
    assert np.unique(told.group, return_counts=True)[1].tolist() == [3] * 20


def test_a_diverged_fit_predicts_the_class_frequencies_of_its_training_subset(tmp_path):
    world = make_world(tmp_path, train_labels=np.repeat([0, 1, 2, 3], [60, 30, 20, 10]))
    one = make_fit(world, Phase(lr=1e6, steps=12, batch_size=16))
    for view in ({}, {"examples": "validation"}, {"mode": "training"}, {"step": "best"}):
        record = look(world, one, **view)
        assert record.scalars["diverged"] == 1.0
        told = record.predictions
        np.testing.assert_allclose(told.probabilities[0], [0.5, 0.25, 1 / 6, 1 / 12], atol=1e-3)
        assert (told.predicted == 0).all()
        np.testing.assert_allclose(told.p_true, np.array([0.5, 0.25, 1 / 6, 1 / 12])[told.label], atol=1e-6)


def test_logits_that_are_not_finite_count_as_diverged_and_finite_ones_do_not(world, monkeypatch):
    assert look(world, make_fit(world)).scalars == {"diverged": 0.0}
    real = evaluate._logits

    def overflowing(*given):
        logits = real(*given)
        logits[3, 1] = np.inf
        return logits

    monkeypatch.setattr(evaluate, "_logits", overflowing)
    record = look(world, make_fit(world))
    assert record.scalars == {"diverged": 1.0}
    np.testing.assert_allclose(record.predictions.p_max, 0.25, atol=0.02)


def drift(seen):
    return {
        "moved": (seen.after["conv1.weight"] - seen.before["conv1.weight"]).abs().max(),
        "layers": len(seen.network.anatomy.groups),
    }


def broken(seen):
    raise ZeroDivisionError("on purpose")


def measured(world, function):
    return make_trial(make_fit(world), measure=f"{__name__}:{function.__name__}@1")


def test_a_plugins_measure_sees_the_tensors_before_and_after_and_gives_plain_numbers(world):
    (record,), _ = ask(world, measured(world, drift))
    assert record.predictions is None
    assert {type(value) for value in record.scalars.values()} == {float}
    assert record.scalars["moved"] > 0
    assert record.scalars["layers"] == 5


def test_a_crash_in_a_measure_is_a_record_with_an_error_and_the_others_are_answered(world):
    trials = [make_trial(make_fit(world)), measured(world, broken), measured(world, drift)]
    (test, crashed, other), _ = ask(world, *trials)
    assert not test.error
    assert not other.error
    assert crashed.error.startswith("ZeroDivisionError: on purpose (test_run_trials.py:")
    assert crashed.key == trials[1].key
    assert crashed.predictions is None


def test_a_measure_that_is_not_there_is_an_error(world):
    (record,), _ = ask(world, make_trial(make_fit(world), measure="no_such_module:f@1"))
    assert "no_such_module" in record.error


def test_a_crash_in_training_is_an_error_for_every_trial_of_the_group_and_nothing_is_kept(world, tmp_path, monkeypatch):
    def crash(*_):
        raise FloatingPointError("on purpose")

    monkeypatch.setattr(loop, "train", crash)
    trials = [make_trial(make_fit(world, seed=seed)) for seed in range(2)]
    records, trained = ask(world, *trials, cache=tmp_path)
    assert [record.key for record in records] == [trial.key for trial in trials]
    assert all(record.error.startswith("FloatingPointError: on purpose") for record in records)
    assert trained == 0
    assert not (tmp_path / "weights").exists()


def test_a_view_or_an_edit_that_nobody_knows_is_an_error_and_no_other_view(world):
    one = make_fit(world)
    trials = [
        *(make_trial(one, **view) for view in ({"examples": "train"}, {"mode": "evaluate"}, {"step": "first"})),
        replace(make_trial(one), model=ModelSpec(base=one, edits=("batchnorm:removed",))),
    ]
    assert all(record.error for record in ask(world, *trials)[0])


@pytest.mark.parametrize("error", [UserError("no such trainable"), OSError(28, "No space left on device")])
def test_the_users_mistakes_and_a_full_disk_are_told_at_once(error, world, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(loop, "train", fail)
    with pytest.raises(type(error)):
        ask(world, make_trial(make_fit(world)), cache=tmp_path)


def test_a_fit_may_start_from_another_and_takes_its_body_but_not_its_head(world):
    source = make_fit(world, seed=9, init="random", labels="shuffled")
    one = replace(make_fit(world, PROBE), start=source)
    look(world, one)
    (before, _), (after, _) = (by_hand(world, which) for which in (source, one))
    body = [name for name in before.state_dict() if not name.startswith("linear")]
    assert all(torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in body)
    assert not torch.equal(before.linear.weight, after.linear.weight)
    look(world, source, examples="validation")


def test_a_fit_that_starts_from_a_diverged_one_is_a_crash_and_not_the_users_fault(world):
    source = make_fit(world, Phase(lr=1e6, steps=12, batch_size=16), seed=9, init="random")
    (record,), _ = ask(world, make_trial(replace(make_fit(world, PROBE), start=source)))
    assert "diverged" in record.error


def test_records_do_not_depend_on_what_was_asked_before(world, tmp_path):
    trials = [
        Trial(model=ModelSpec(base=one, edits=edits), view=make_trial(one).view, place=PLACE)
        for one in (make_fit(world, Phase(batchnorm="momentum:0.5", **BRIEF)), make_fit(world, PROBE))
        for edits in ((), ("batchnorm:recalibrated@2",))
    ]
    forward = [ask(world, trial, cache=tmp_path / "a")[0][0] for trial in trials]
    backward = [ask(world, trial, cache=tmp_path / "b")[0][0] for trial in reversed(trials)][::-1]
    assert all(same(*pair) for pair in zip(forward, backward, strict=True))


def test_a_teacher_is_trained_once_and_recalled_for_each_student(world, tmp_path, monkeypatch):
    teachers = [make_fit(world, PROBE, seed=seed) for seed in range(2)]
    ask(world, *map(make_trial, teachers), cache=tmp_path)
    seen, real = [], loop.train
    monkeypatch.setattr(loop, "train", lambda fits, *rest: seen.append(tuple(fits)) or real(fits, *rest))
    students = tuple(
        make_fit(world, init="random", regularizer=Regularizer.parse("distill:0.5"), seed=one.seed, teacher=one)
        for one in teachers
    )
    records, trained = ask(world, *map(make_trial, students), cache=tmp_path)
    assert (seen, trained) == ([students], 2)
    assert not any(record.error for record in records)
    again, trained = ask(world, *map(make_trial, students), cache=tmp_path)
    assert (len(seen), trained) == (1, 0)
    assert all(same(*pair) for pair in zip(records, again, strict=True))


def test_what_a_student_cost_has_its_teachers_training_too(world, tmp_path):
    teacher = make_fit(world, PROBE)
    student = make_fit(world, init="random", regularizer=Regularizer.parse("distill:0.5"), teacher=teacher)
    (taught,), _ = ask(world, make_trial(student), cache=tmp_path)
    (teaching,), _ = ask(world, make_trial(teacher), cache=tmp_path)
    (own,), _ = run_trials._fitted([student], make_trial(student), tmp_path)
    assert taught.fit_seconds == own.seconds + teaching.fit_seconds > teaching.fit_seconds > 0


def test_a_teacher_that_diverged_is_an_error_of_its_students(world, tmp_path):
    teacher = make_fit(world, replace(PROBE, lr=1e38, optimizer="sgd"))
    student = make_fit(world, init="random", regularizer=Regularizer.parse("distill:0.5"), teacher=teacher)
    (record,), _ = ask(world, make_trial(student), cache=tmp_path)
    assert "the teacher of this fit diverged" in record.error
