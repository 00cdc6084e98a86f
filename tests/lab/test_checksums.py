"""Samples of tensors as bits, sums over all bits, and their comparison."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
from xferbench.lab.monitor import checksums

KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


def make_tensors():
    return {f"{kind}": torch.ones(200, dtype=kind) for kind in KINDS} | {"scalar": torch.tensor(3), "pair": torch.ones(1, 2)}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_change_is_detected_in_its_tensor_alone(kind):
    tensors = make_tensors()
    before, sums = checksums.sample_tensors(tensors).values, checksums.bit_sums(tensors)
    assert checksums.moved_tensors(checksums.sample_tensors(tensors), before) == set()
    tensors[f"{kind}"].zero_()
    assert checksums.moved_tensors(checksums.sample_tensors(tensors), before) == {f"{kind}"}
    assert {name for name, value in checksums.bit_sums(tensors).items() if value != sums[name]} == {f"{kind}"}


def test_a_sample_copies_at_most_64_values_from_the_whole_tensor():
    whole = torch.arange(640.0)
    (part,) = checksums.sample_tensors({"a": whole}).values.values()
    assert (len(part), part[0], part[-1]) == (64, 0, 63 * 9)
    whole.zero_()
    assert part[-1] == 63 * 9
    assert len(checksums.sample_tensors({"a": torch.ones(3, 4)}).values["a"]) == 12


def test_every_column_of_a_matrix_is_sampled():
    columns = torch.arange(64.0).repeat(64, 1)
    assert len(checksums.sample_tensors({"a": columns}).values["a"].unique()) == 64


@pytest.mark.parametrize(
    "tensor",
    [torch.arange(640.0).view(1, 16, 8, 5).to(memory_format=torch.channels_last), torch.arange(640.0).view(8, 80).T],
    ids=["channels last", "transposed"],
)
def test_other_memory_formats_are_sampled(tensor):
    before = checksums.sample_tensors({"a": tensor})
    assert len(before.values["a"].unique()) == 64
    tensor.add_(1)
    assert checksums.moved_tensors(checksums.sample_tensors({"a": tensor}), before.values) == {"a"}


def test_a_view_is_sampled_from_its_offset():
    assert checksums.sample_tensors({"a": torch.arange(10.0)[4:6]}).values["a"].tolist() == [4, 5]


def test_nan_equals_itself_and_a_change_of_the_sign_of_zero_is_detected():
    tensors = {"nan": torch.tensor([math.nan]), "zero": torch.tensor([0.0])}
    before = checksums.sample_tensors(tensors).values
    tensors = {"nan": torch.tensor([math.nan]), "zero": torch.tensor([-0.0])}
    assert checksums.moved_tensors(checksums.sample_tensors(tensors), before) == {"zero"}


def test_non_finite_values_are_detected_for_all_dtypes():
    tensors = make_tensors() | {"nan": torch.tensor([1.0, math.nan]), "inf": torch.tensor([math.inf], dtype=torch.float16)}
    assert checksums.non_finite_tensors(checksums.sample_tensors(tensors)) == {"nan", "inf"}


def test_a_sum_detects_a_single_bit():
    values = torch.ones(10_000)
    before = checksums.bit_sums({"a": values})
    values[4321] = math.nextafter(1.0, 2.0)
    assert checksums.bit_sums({"a": values}) == before, "the next float64 rounds to the same float32"
    values[4321] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert checksums.bit_sums({"a": values}) != before


@pytest.mark.parametrize(("first", "count"), [(0, 8), (1, 8), (0, 7), (2, 6)])
def test_a_sum_uses_every_value_for_any_offset_and_size(first, count):
    part = torch.ones(12)[first : first + count]
    sums = [checksums.bit_sums({"a": part})["a"]]
    for index in range(count):
        part[index] += 1
        sums.append(checksums.bit_sums({"a": part})["a"])
    assert len(set(sums)) == count + 1


def test_norms_are_computed_in_float32_or_wider():
    gradients = {"half": torch.full((100,), 6e4, dtype=torch.float16), "double": torch.tensor([3.0, 4.0]).double()}
    assert checksums.gradient_norms(gradients) == {"half": pytest.approx(6e5, rel=1e-3), "double": 5.0}
    assert checksums.gradient_norms({}) == checksums.bit_sums({}) == {}


def test_decay_factor_requires_one_factor_below_1():
    old = torch.randn(64, generator=torch.Generator().manual_seed(0))
    assert checksums.decay_factor(old * 0.999, old) == pytest.approx(0.999)
    assert checksums.decay_factor(old * (1 - 1e-5), old) == pytest.approx(1 - 1e-5, rel=1e-6)
    assert checksums.decay_factor(old * 1.1, old) is None
    assert checksums.decay_factor(old * 0.999 + 0.01, old) is None
    assert checksums.decay_factor(torch.ones(4), torch.zeros(4)) is None
    assert checksums.decay_factor(torch.tensor([1]), torch.tensor([2])) is None


def test_relative_distance_weighs_tensors_by_size():
    before = {"small": torch.tensor([1.0]), "large": torch.tensor([1.0])}
    now = {"small": torch.tensor([2.0]), "large": torch.tensor([1.0])}
    assert checksums.relative_distance(now, before, {"small": 1, "large": 3}) == pytest.approx(0.5)
    assert math.isnan(checksums.relative_distance(before, {"a": torch.zeros(1)}, {}))


def test_has_values_excludes_unreadable_tensors():
    assert checksums.has_values(torch.ones(1))
    assert not checksums.has_values(torch.ones(1, device="meta"))
    assert not checksums.has_values(torch.ones(0))
    assert not checksums.has_values(torch.eye(2).to_sparse())
    assert not checksums.has_values(torch.nn.LazyLinear(2).weight)
