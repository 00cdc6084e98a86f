"""What a view sees: the source through the head as it was, another order of serving, a network that diverged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_datasets import make_npz
from test_loop import BRIEF, PLACE, READY, WEIGHTS, make_fit, make_trial, make_world
from test_run_trials import look

from xferbench.core.interventions import ALL_LAYERS, HEAD_ONLY, Finish, Trainable
from xferbench.core.pipeline import AuxiliaryDataset, Phase, Pipeline, Recipe
from xferbench.lab.data import datasets, domains, preprocessing
from xferbench.lab.evaluation import edits, evaluate
from xferbench.lab.models import backbones, batchnorm, checkpoint_reader
from xferbench.lab.training import loop
from xferbench.lab.worker import run_trials
from xferbench.study.trials import make_trial as make_trial_
from xferbench.study.trials import training_spec

OUTPUTS = tuple(range(19, 9, -1))  # of the shipped head, for the source's ten classes
DIVERGING = Phase(lr=1e6, optimizer="sgd", steps=12, batch_size=16)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    made = make_world(folder)
    made.data = make_npz(folder / "target.npz", test=130)
    made.source = AuxiliaryDataset(data=make_npz(folder / "s.npz", train=85, classes=10), classes=OUTPUTS)
    return made


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_pipeline(world, *phases, **more):
    return Pipeline(
        arch="tiny-resnet",
        weights=WEIGHTS,
        target=world.data,
        train_size=60,
        test_size=None,
        recipe=Recipe(phases=phases),
        train_preprocessing=READY,
        serve_preprocessing=READY,
        source=world.source,
        shifted=AuxiliaryDataset(data=world.data, classes=(0, 1, 2, 3)),
        **more,
    )


def seen(world, pipeline, view, seed=0):
    """The predictions of a named view."""
    (record,), _ = run_trials.run_trials(
        [trial := make_trial_(pipeline, view, seed, PLACE)], frozenset([trial.key]), world.cache
    )
    assert not record.error
    return record.predictions


def checkpoint():
    """The published network as it is."""
    module = backbones.build("tiny-resnet", 20).eval()
    module.load_state_dict(
        checkpoint_reader.read_checkpoint(run_trials.Path(WEIGHTS.path)), strict=False
    )  # its counters are not kept
    return module


@torch.no_grad()
def p_true(module, split):
    p = module(preprocessing.to_tensor(torch.from_numpy(np.array(split.images)), READY)).double().softmax(1)
    return p[torch.arange(len(p)), torch.from_numpy(split.labels)].numpy()


def test_the_source_before_is_the_checkpoint_itself_on_source_images(world):
    found = seen(world, make_pipeline(world, Phase(**BRIEF)), "source-before", seed=3)
    test = domains.load_domain(world.source, READY, world.cache).test
    np.testing.assert_allclose(found.p_true, p_true(checkpoint(), test), rtol=1e-4, atol=1e-6)
    assert (found.example == test.example).all() and set(found.label) == set(OUTPUTS)
    assert found.probabilities.shape == (len(test.labels), 20)


def test_held_out_source_images_are_training_images_that_no_fit_is_given(world):
    found = seen(world, make_pipeline(world, Phase(**BRIEF)), "source-held-out")
    source = domains.load_domain(world.source, READY, world.cache)
    assert set(found.example.tolist()) == set(domains.held_out_split(source).example.tolist())
    assert not set(found.example.tolist()) & set(domains.memory_split(source).example.tolist())


@pytest.mark.parametrize("views", [("source-before", "source"), ("source-probe-before", "source-probe")])
def test_what_is_frozen_forgets_exactly_nothing(world, views):
    probe = make_pipeline(world, Phase(trainable=HEAD_ONLY, batchnorm="eval", lr=1e-2, **BRIEF))
    before, after = (seen(world, probe, view, seed=2) for view in views)
    for name in ("example", "predicted", "p_true", "p_max", "sum_p2", "probabilities"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name


def test_batchnorm_alone_can_forget_and_putting_it_back_returns_all_of_it(world):
    probe = make_fit(world, Phase(trainable=HEAD_ONLY, batchnorm="train", lr=1e-2, **BRIEF))
    view = {"domain": world.source}
    before = look(world, replace(probe, phases=()), edits=("head:source",), **view).predictions.p_true
    after = look(world, probe, edits=("head:source",), **view).predictions.p_true
    back = look(world, probe, edits=("batchnorm:restored", "head:source"), **view).predictions.p_true
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(back, before, rtol=1e-4, atol=1e-6)


def test_a_shifted_set_is_looked_at_with_the_targets_own_head(world):
    pipeline = make_pipeline(world, Phase(**BRIEF))
    shifted, test = (seen(world, pipeline, view) for view in ("shifted", "test"))
    assert np.array_equal(shifted.p_true, test.p_true), "here it is the target itself"
    moved = replace(pipeline, shifted=AuxiliaryDataset(data=world.data, classes=(3, 2, 1, 0)))
    assert (seen(world, moved, "shifted").label == 3 - test.label).all()


def test_a_domain_whose_classes_nobody_knows_is_not_looked_at(world):
    with pytest.raises(ValueError, match=r"no \[source\] whose classes are known"):
        make_trial_(replace(make_pipeline(world), source=None), "source", 0, PLACE)
    unknown = replace(make_pipeline(world), shifted=AuxiliaryDataset(data=world.data))
    with pytest.raises(ValueError, match=r"no \[shifted\] whose classes are known"):
        make_trial_(unknown, "shifted", 0, PLACE)


def test_served_class_after_class_batchnorm_sees_one_class_at_a_time(world):
    one = make_fit(world)
    labels = datasets.load_dataset(world.data, READY, None, world.cache).test.labels
    order = evaluate.serving_order("class", labels)
    assert sorted(order.tolist()) == list(range(len(labels))) and (np.diff(labels[order]) >= 0).all()
    shuffled = evaluate.serving_order("", labels)
    assert sorted(shuffled.tolist()) == list(range(len(labels))) and (np.diff(labels[shuffled]) < 0).any()
    found = {mode: look(world, one, mode=mode).predictions for mode in ("eval", "training", "training:class")}
    assert all(np.array_equal(told.label, labels) for told in found.values()), "told in the order of the examples"
    for one_way, other in (("eval", "training"), ("training", "training:class"), ("eval", "training:class")):
        assert np.abs(found[one_way].p_true - found[other].p_true).max() > 0.01


def test_batches_by_class_are_those_of_the_network_by_hand(world):
    one = make_fit(world)
    found = look(world, one, mode="training:class").predictions
    dataset, _ = run_trials.training_inputs(one, make_trial(one), world.cache)
    state, _ = checkpoint_reader.read_saved(run_trials.weights_path(one, PLACE, world.cache))
    module = backbones.build("tiny-resnet", 4)
    module.load_state_dict({name.removeprefix("last."): t for name, t in state.items() if name.startswith("last.")})
    order = evaluate.serving_order("class", dataset.test.labels)
    first = np.array_split(order, max(1, len(order) // evaluate.SERVING_BATCH))[0]
    expected = p_true(module.train(), datasets.take(dataset.test, first))
    np.testing.assert_allclose(found.p_true[first], expected, rtol=1e-3, atol=1e-5)


def trained_by_hand(world, pipeline):
    """The network that a pipeline's fit left after its last step, and the dataset."""
    one = training_spec(pipeline, 0)
    dataset, _ = run_trials.training_inputs(one, make_trial(one), world.cache)
    state, _ = checkpoint_reader.read_saved(run_trials.weights_path(one, PLACE, world.cache))
    module = backbones.build("tiny-resnet", 4).eval()
    module.load_state_dict({name.removeprefix("last."): t for name, t in state.items() if name.startswith("last.")})
    return module, dataset


def test_the_temperature_of_a_trained_fit_is_that_of_its_own_validation_images(world):
    pipeline = make_pipeline(world, Phase(lr=1e-2, **BRIEF))
    plain, tempered = (seen(world, pipeline, view) for view in ("test", "tempered"))
    module, dataset = trained_by_hand(world, pipeline)
    _, held_out = datasets.train_validation_indices(dataset, 60, 0)
    validation = datasets.take(dataset.train, held_out)

    def logits(split):
        with torch.no_grad():
            return module(preprocessing.to_tensor(torch.from_numpy(np.array(split.images)), READY)).double().numpy()

    value = edits.fit_temperature(logits(validation), validation.labels)
    p = torch.from_numpy(logits(dataset.test) / value).softmax(1).numpy()
    np.testing.assert_allclose(tempered.p_true, p[np.arange(len(p)), dataset.test.labels], rtol=1e-3, atol=1e-5)
    assert abs(value - 1) > 0.01 and np.array_equal(tempered.predicted, plain.predicted)


def test_training_images_are_those_that_the_fit_was_given(world):
    pipeline = make_pipeline(world, Phase(**BRIEF))
    found = {view: set(seen(world, pipeline, view).example.tolist()) for view in ("training", "validation", "test")}
    _, dataset = trained_by_hand(world, pipeline)
    given, _ = datasets.train_validation_indices(dataset, 60, 0)
    assert found["training"] == set(dataset.train.example[given].tolist())
    assert not found["training"] & (found["validation"] | found["test"])


def test_an_order_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="no such way to serve: sorted"):
        evaluate.serving_order("sorted", np.zeros(3))


@pytest.mark.parametrize("view", ["source", "source-probe"])
def test_a_diverged_fit_predicts_the_sources_most_frequent_class_on_the_source(world, view):
    found = seen(world, make_pipeline(world, DIVERGING), view)
    train = domains.load_domain(world.source, READY, world.cache).train.labels
    usual = np.bincount(train).argmax()
    assert usual in OUTPUTS and (found.predicted == usual).all()
    share = np.bincount(train, minlength=20) / len(train)
    np.testing.assert_allclose(found.p_true, share[found.label], rtol=1e-6)


def test_on_the_target_and_its_shift_it_predicts_the_targets(world):
    pipeline = make_pipeline(world, DIVERGING)
    for view in ("test", "shifted"):
        assert seen(world, pipeline, view).p_true == pytest.approx(0.25)


def test_an_edit_or_examples_that_are_not_known_are_an_error(world):
    one = make_fit(world)
    for words, view, why in ((("head:lost",), {}, "no such edit"), ((), {"examples": "train"}, "no such examples")):
        trial = make_trial(one, **view)
        trial = replace(trial, model=replace(trial.model, edits=words))
        (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), world.cache)
        assert why in record.error


LP_FT = (
    Phase(trainable=HEAD_ONLY, batchnorm="eval", lr=1e-2, **BRIEF),
    Phase(batchnorm="momentum:0.5", lr=1e-2, **BRIEF),
)


def finished(world, finish, view, *phases, seed=0):
    """The tensors that a named view of a recipe with a finish looks at."""
    made = make_pipeline(world, *phases or LP_FT)
    trial = make_trial_(
        replace(made, recipe=replace(made.recipe, finish=Finish.parse(finish) if finish else None)), view, seed, PLACE
    )
    (found,), _ = run_trials._fitted([trial.model.base], trial, world.cache)
    (found,) = run_trials._begun([trial.model.base], [found], trial, world.cache)
    return evaluate.edit_tensors(run_trials.load_model(trial, found, world.cache), trial.model.edits, trial.view), trial


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_adabn_changes_statistics_alone_and_each_domain_has_its_own(world):
    plain, _ = finished(world, "", "test")
    found = {view: finished(world, "adabn", view)[0] for view in ("test", "validation", "shifted", "source")}
    (layers,) = {frozenset(batchnorm.statistics_names(backbones.build("tiny-resnet", 4)))}
    moved = {name for name in plain if not torch.equal(plain[name], found["test"][name])}
    assert moved and moved <= layers
    assert equal(found["test"], found["validation"])
    body = {name for name in plain if not name.startswith("linear.")}
    for view in ("shifted", "source"):
        assert {name for name in body if not torch.equal(plain[name], found[view][name])} <= layers
    mean = "bn1.running_mean"
    assert len({tuple(tensors[mean].tolist()) for tensors in (plain, *found.values())}) == 4


def test_adabn_takes_images_as_the_view_prepares_them_and_none_that_choices_are_made_on(world, monkeypatch):
    given, real = [], evaluate._recalibrated
    monkeypatch.setattr(evaluate, "_recalibrated", lambda images, *rest: given.append((images, rest[0])) or real(images, *rest))
    own = replace(READY, channels="bgr")
    pipeline = replace(make_pipeline(world, *LP_FT), serve_preprocessing=own)
    pipeline = replace(pipeline, recipe=replace(pipeline.recipe, finish=Finish.parse("adabn")))
    seen(world, pipeline, "test")
    seen(world, pipeline, "shifted")
    seen(world, pipeline, "source-held-out")
    assert [prepared for _, prepared in given] == [own, own, own]
    assert [len(images) for images, _ in given] == [60, 60, 43]
    held_out = domains.held_out_split(domains.load_domain(world.source, READY, world.cache)).images
    assert not {image.tobytes() for image in held_out} & {image.tobytes() for image in given[2][0]}


def test_interpolation_has_both_ends_bit_for_bit(world):
    plain, trial = finished(world, "", "test")
    assert equal(finished(world, "interpolate:1", "test")[0], plain)
    (shorter,), _ = run_trials._fitted([replace(trial.model.base, phases=LP_FT[:1])], trial, world.cache)
    assert equal(finished(world, "interpolate:0", "test")[0], shorter.last)
    half, _ = finished(world, "interpolate:0.5", "test")
    for name, tensor in half.items():
        between = torch.lerp(shorter.last[name], plain[name], 0.5) if tensor.is_floating_point() else plain[name]
        assert torch.equal(tensor, between)
    assert not torch.equal(half["linear.weight"], plain["linear.weight"]), "the head too"
    assert not torch.equal(half["bn1.running_var"], plain["bn1.running_var"]), "and running statistics"


def test_the_beginning_is_what_the_last_phase_was_given_in_lock_step_too(world, monkeypatch):
    adapted = (
        LP_FT[0],
        replace(LP_FT[1], trainable=ALL_LAYERS),
        Phase(trainable=Trainable.parse("adapter:2"), batchnorm="eval", **BRIEF),
    )
    fits = [make_fit(world, *adapted, seed=seed) for seed in range(2)]
    given, real = [], loop._phase

    def noted(phase, number, fits, rest, network, stacked, *more, **marks):
        if number == len(adapted) - 1:
            given.append({name: tensor.clone() for name, tensor in stacked.items()})
        yield from real(phase, number, fits, rest, network, stacked, *more, **marks)

    monkeypatch.setattr(loop, "_phase", noted)
    trial, cache = make_trial(fits[0]), world.cache / "begun"
    found, _ = run_trials._fitted(fits, trial, cache)
    for g, one in enumerate(run_trials._begun(fits, found, trial, cache)):
        assert equal(one.begun.last, {name: tensor[g] for name, tensor in given[0].items()})


def test_of_a_recipe_of_one_phase_the_beginning_is_the_network_as_it_starts(world):
    phase = Phase(**BRIEF)
    found, trial = finished(world, "interpolate:0", "test", phase)
    (whole,), _ = run_trials._fitted([trial.model.base], trial, world.cache)
    assert equal(found, whole.before)


def test_what_finishes_a_recipe_retrains_nothing_and_an_old_file_of_weights_will_do(world, tmp_path):
    plain = make_pipeline(world, *LP_FT)
    trials = {
        word: make_trial_(
            replace(plain, recipe=replace(plain.recipe, finish=Finish.parse(word) if word else None)), "test", 0, PLACE
        )
        for word in ("", "adabn", "interpolate:0", "interpolate:0.5", "interpolate:1")
    }
    assert len({trial.model.base for trial in trials.values()}) == 1
    (first,), trained = run_trials.run_trials([trials[""]], frozenset([trials[""].key]), tmp_path)
    assert trained == 1
    records, trained = run_trials.run_trials([*trials.values()], frozenset(one.key for one in trials.values()), tmp_path)
    assert trained == 0
    assert not any(record.error for record in records)
    told = dict(zip(trials, (record.predictions.p_true for record in records), strict=True))
    assert np.array_equal(told[""], told["interpolate:1"]) and np.array_equal(told[""], first.predictions.p_true)
    assert len({tuple(told[word]) for word in ("", "adabn", "interpolate:0", "interpolate:0.5")}) == 4
    cost = dict(zip(trials, (record.fit_seconds for record in records), strict=True))
    assert cost[""] == cost["adabn"] == first.fit_seconds < cost["interpolate:0.5"], "whose earlier phases were trained again"
