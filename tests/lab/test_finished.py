from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from xferbench.core.errors import UserError
from xferbench.core.files import sha256
from xferbench.core.interventions import OWN_HEAD, PRETRAINED, RANDOM_HEAD, Edit
from xferbench.core.pipeline import Checkpoint, Data, WeightsFile
from xferbench.core.sections import replace_flat
from xferbench.core.transforms import Preprocessing
from xferbench.core.trial import (
    ComputeContext,
    EvaluationSpec,
    InitialNetwork,
    ModelSpec,
    TrainingData,
    TrainingProcedure,
    TrainingSpec,
    Trial,
)
from xferbench.data import inputs
from xferbench.lab.data import datasets
from xferbench.lab.evaluation.edits import initial_statistics
from xferbench.lab.models import backbones, checkpoint_reader, checkpoints, finished, finished_heads, small_resnets
from xferbench.lab.training.network import Architecture
from xferbench.lab.worker import run_trials

RAW = Preprocessing()
BEFORE = inputs.SHIPPED_WEIGHTS_FOLDER / "tiny-resnet-0.safetensors"
CONTEXT = ComputeContext(device="cpu", torch="0", lab=1)


def make_weights_file(path):
    return WeightsFile(digest=sha256(path), path=str(path))


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """Save the shipped network with a head of ten outputs and changed statistics by torch.save."""
    torch.manual_seed(0)
    network = small_resnets.tiny_resnet(10)
    checkpoints.load_backbone(network, checkpoint_reader.read_checkpoint(BEFORE), "linear")
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1)
    path = tmp_path_factory.mktemp("after") / "after.pth"
    torch.save(network.state_dict(), path)
    return path


def make_spec(after, before=BEFORE):
    return TrainingSpec(
        network=InitialNetwork(
            arch="tiny-resnet",
            init=PRETRAINED,
            start=make_weights_file(after),
            head=OWN_HEAD,
            before=make_weights_file(before) if before else None,
        ),
        data=TrainingData(dataset=Data(digest="digits", spec="digits"), train_size=64, preprocessing=RAW),
        procedure=TrainingProcedure(phases=()),
        seed=0,
    )


def make_trial(spec, *edits, **view):
    return Trial(
        model=ModelSpec(base=spec, edits=edits), view=EvaluationSpec(preprocessing=RAW, limit=64, **view), context=CONTEXT
    )


def evaluate_trials(trials, cache):
    records, trained = run_trials.run_trials(trials, frozenset(trial.key for trial in trials), cache)
    assert trained == 0, "nothing is trained"
    assert not [record.error for record in records if record.error]
    return records


def test_the_model_predicts_what_the_checkpoint_predicts(after, tmp_path):
    (record,) = evaluate_trials([make_trial(make_spec(after))], tmp_path)
    network = small_resnets.tiny_resnet(10).eval()
    network.load_state_dict(torch.load(after, weights_only=True))
    test = datasets.load_dataset(Data(digest="digits", spec="digits"), RAW, 64, tmp_path).test
    with torch.no_grad():
        p = network(torch.from_numpy(np.array(test.images)).float() / 255).softmax(1)
    assert np.array_equal(record.predictions.predicted, p.argmax(1).numpy())
    assert np.allclose(record.predictions.p_max, p.amax(1).numpy(), atol=1e-5)
    assert not (tmp_path / "weights").exists(), "the file is there already"


def test_the_halves_partition_the_test_images_with_similar_classes(after, tmp_path):
    full, screen, confirm = evaluate_trials(
        [make_trial(make_spec(after), examples=examples) for examples in ("test", "screen", "confirm")], tmp_path
    )
    halves = [set(record.predictions.example.tolist()) for record in (screen, confirm)]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(full.predictions.example.tolist())
    counts = [np.bincount(record.predictions.label, minlength=10) for record in (screen, confirm)]
    assert np.abs(counts[0] - counts[1]).max() <= 2


def test_the_halves_do_not_divide_groups():
    groups = np.repeat(np.arange(9), 7)
    none = np.zeros((63, 3, 1, 1), np.uint8)
    split = datasets.Split(images=none, labels=np.arange(63) % 2, groups=groups, example=np.arange(63, dtype=np.uint64))
    first, second = (datasets.split_half(split, second=second) for second in (False, True))
    assert not set(first.groups) & set(second.groups)
    assert len(first.labels) + len(second.labels) == 63
    assert min(len(first.labels), len(second.labels)) >= 21


def test_each_edit_changes_the_model_as_documented(after, tmp_path):
    edit_lists = [
        (),
        (Edit.parse("batchnorm:restored"),),
        (Edit.parse("interpolated:0"),),
        (Edit.parse("interpolated:1"),),
        (Edit.parse("temperature:4"),),
        (Edit.parse("classes:rotated"),),
    ]
    plain, restored, before, same, cool, rotated = evaluate_trials(
        [make_trial(make_spec(after), *edits) for edits in edit_lists], tmp_path
    )
    assert not np.array_equal(plain.predictions.p_max, restored.predictions.p_max)
    assert np.allclose(restored.predictions.p_max, before.predictions.p_max, atol=1e-6), "only statistics differ"
    assert np.allclose(plain.predictions.p_max, same.predictions.p_max, atol=1e-6)
    assert (cool.predictions.p_max <= plain.predictions.p_max + 1e-6).all()
    assert np.array_equal(cool.predictions.predicted, plain.predictions.predicted)
    assert np.array_equal(rotated.predictions.predicted, (plain.predictions.predicted + 1) % 10)


@pytest.mark.parametrize(
    "edit",
    [
        Edit.parse("batchnorm:recalibrated@2"),
        Edit.parse("batchnorm:one-class@1"),
        Edit.parse("batchnorm:initial"),
        Edit.parse("weights:permuted@1"),
        Edit.parse("classes:assigned@1"),
    ],
)
def test_every_other_edit_can_be_evaluated(after, tmp_path, edit):
    plain, edited = evaluate_trials([make_trial(make_spec(after)), make_trial(make_spec(after), edit)], tmp_path)
    assert not np.array_equal(plain.predictions.probabilities, edited.predictions.probabilities)


def test_a_linear_probe_of_the_network_before_is_better_than_a_random_head(after, tmp_path):
    plain, probe = evaluate_trials(
        [make_trial(make_spec(after)), make_trial(make_spec(after), Edit.parse("interpolated:0"), Edit.parse("head:probe"))],
        tmp_path,
    )
    accuracies = [(record.predictions.predicted == record.predictions.label).mean() for record in (plain, probe)]
    assert accuracies[1] > accuracies[0] + 0.2


def make_network(outputs=10):
    module = small_resnets.tiny_resnet(outputs)
    return module, backbones.layer_layout(module, 32).head


def test_the_number_of_outputs_is_found(after):
    assert finished_heads.find_head(*make_network(), checkpoint_reader.read_checkpoint(after)).outputs == 10


def test_a_checkpoint_without_a_head_is_refused():
    state = {
        name: tensor for name, tensor in checkpoint_reader.read_checkpoint(BEFORE).items() if not name.startswith("linear")
    }
    with pytest.raises(UserError, match="no head"):
        finished_heads.find_head(*make_network(), state)


def test_the_same_weights_in_both_files_are_an_error(tmp_path, after):
    same_weights = tmp_path / "again.pth"
    state = torch.load(after, weights_only=True)
    torch.save({"state_dict": state, "epoch": 3}, same_weights)
    pair = Checkpoint(after=make_weights_file(after), before=make_weights_file(same_weights))
    with pytest.raises(UserError, match="before equals after"):
        finished.inspect_checkpoint(*make_network(), pair, checkpoint_reader.read_checkpoint(same_weights), 10)


@pytest.mark.parametrize("key", ["after", "before"])
def test_weights_of_another_architecture_are_an_error_that_names_the_key(tmp_path, after, key):
    other_file = tmp_path / "other.pth"
    torch.save(small_resnets.cifar_resnet(20, 10).state_dict(), other_file)
    files = {"after": after, "before": BEFORE} | {key: other_file}
    pair = Checkpoint(**{name: make_weights_file(path) for name, path in files.items()})
    with pytest.raises(UserError, match=rf"\[checkpoint\] {key}: the weights do not fit"):
        finished.inspect_checkpoint(*make_network(), pair, checkpoint_reader.read_checkpoint(files["before"]), 10)


def test_weights_that_are_not_finite_are_a_diverged_model(tmp_path, after):
    broken = tmp_path / "nan.pth"
    state = torch.load(after, weights_only=True)
    torch.save({name: tensor * float("nan") if tensor.ndim == 4 else tensor for name, tensor in state.items()}, broken)
    (record,) = evaluate_trials([make_trial(make_spec(broken))], tmp_path)
    assert record.scalars["diverged"] == 1.0


def test_edits_of_the_head_share_cached_features(after, tmp_path):
    evaluate_trials(
        [
            make_trial(make_spec(after)),
            make_trial(make_spec(after), Edit.parse("temperature:2")),
            make_trial(make_spec(after), Edit.parse("classes:rotated")),
        ],
        tmp_path,
    )
    assert len(list((tmp_path / "features").iterdir())) == 1


def test_initial_statistics_change_only_statistics():
    statistics = initial_statistics({"bn.running_mean": torch.ones(2), "bn.running_var": torch.zeros(2)})
    assert {name: tensor.tolist() for name, tensor in statistics.items()} == {
        "bn.running_mean": [0, 0],
        "bn.running_var": [1, 1],
    }


def test_a_checkpoint_has_a_key_of_its_own(after):
    spec = make_spec(after)
    specs = (spec, replace_flat(spec, before=None), replace_flat(spec, head=RANDOM_HEAD))
    assert len({make_trial(spec).key for spec in specs}) == 3


def test_a_head_with_one_output_becomes_one_with_two_whose_softmax_is_the_sigmoid():
    torch.manual_seed(0)
    state = small_resnets.tiny_resnet(1).eval().state_dict()
    one, two = small_resnets.tiny_resnet(1).eval(), small_resnets.tiny_resnet(2).eval()
    one.load_state_dict(state)
    layout = backbones.layer_layout(two, 32)
    network = Architecture(module=two, layout=layout, device=torch.device("cpu"), cache=Path())
    two.load_state_dict(finished.checkpoint_tensors(network, state))
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(two(images).softmax(1)[:, 1:], one(images).sigmoid(), atol=1e-6)
