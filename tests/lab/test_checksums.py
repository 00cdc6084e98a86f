"""Samples of a tensor's values as bits, sums over all of them, and what they tell."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
from xferbench.lab.monitor import checksums

KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


def make_tensors():
    return {f"{kind}": torch.ones(200, dtype=kind) for kind in KINDS} | {"scalar": torch.tensor(3), "pair": torch.ones(1, 2)}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_change_of_one_kind_of_tensor_is_seen_in_that_alone(kind):
    tensors = make_tensors()
    before, sums = checksums.sample_tensors(tensors).values, checksums.bit_sums(tensors)
    assert checksums.moved_tensors(checksums.sample_tensors(tensors), before) == set()
    tensors[f"{kind}"].zero_()
    assert checksums.moved_tensors(checksums.sample_tensors(tensors), before) == {f"{kind}"}
    assert {name for name, value in checksums.bit_sums(tensors).items() if value != sums[name]} == {f"{kind}"}


def test_a_sample_is_a_copy_of_at_most_64_values_from_all_over_a_tensor():
    whole = torch.arange(640.0)
    (part,) = checksums.sample_tensors({"a": whole}).values.values()
    assert (len(part), part[0], part[-1]) == (64, 0, 63 * 9)
    whole.zero_()
    assert part[-1] == 63 * 9
    assert len(checksums.sample_tensors({"a": torch.ones(3, 4)}).values["a"]) == 12


def test_every_column_of_a_matrix_is_met():
    columns = torch.arange(64.0).repeat(64, 1)
    assert len(checksums.sample_tensors({"a": columns}).values["a"].unique()) == 64


@pytest.mark.parametrize(
    "tensor",
    [torch.arange(640.0).view(1, 16, 8, 5).to(memory_format=torch.channels_last), torch.arange(640.0).view(8, 80).T],
    ids=["channels last", "transposed"],
)
def test_memory_in_another_order_is_sampled_too(tensor):
    before = checksums.sample_tensors({"a": tensor})
    assert len(before.values["a"].unique()) == 64
    tensor.add_(1)
    assert checksums.moved_tensors(checksums.sample_tensors({"a": tensor}), before.values) == {"a"}


def test_a_part_of_a_larger_tensor_is_sampled_from_where_it_begins():
    assert checksums.sample_tensors({"a": torch.arange(10.0)[4:6]}).values["a"].tolist() == [4, 5]


def test_nan_equals_itself_and_a_zero_may_change_its_sign():
    tensors = {"nan": torch.tensor([math.nan]), "zero": torch.tensor([0.0])}
    before = checksums.sample_tensors(tensors).values
    tensors = {"nan": torch.tensor([math.nan]), "zero": torch.tensor([-0.0])}
    assert checksums.moved_tensors(checksums.sample_tensors(tensors), before) == {"zero"}


def test_what_is_not_finite_is_found_among_kinds_that_can_be():
    tensors = make_tensors() | {"nan": torch.tensor([1.0, math.nan]), "inf": torch.tensor([math.inf], dtype=torch.float16)}
    assert checksums.non_finite_tensors(checksums.sample_tensors(tensors)) == {"nan", "inf"}


def test_a_sum_sees_a_single_bit():
    one = torch.ones(10_000)
    before = checksums.bit_sums({"a": one})
    one[4321] = math.nextafter(1.0, 2.0)
    assert checksums.bit_sums({"a": one}) == before, "a double's next number is no other single"
    one[4321] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert checksums.bit_sums({"a": one}) != before


@pytest.mark.parametrize(("first", "count"), [(0, 8), (1, 8), (0, 7), (2, 6)])
def test_a_sum_takes_every_value_however_a_tensor_lies_in_memory(first, count):
    part = torch.ones(12)[first : first + count]
    found = [checksums.bit_sums({"a": part})["a"]]
    for at in range(count):
        part[at] += 1
        found.append(checksums.bit_sums({"a": part})["a"])
    assert len(set(found)) == count + 1


def test_norms_are_taken_in_single_precision_at_least():
    gradients = {"half": torch.full((100,), 6e4, dtype=torch.float16), "double": torch.tensor([3.0, 4.0]).double()}
    assert checksums.gradient_norms(gradients) == {"half": pytest.approx(6e5, rel=1e-3), "double": 5.0}
    assert checksums.gradient_norms({}) == checksums.bit_sums({}) == {}


def test_one_factor_for_all_is_a_shrinking():
    old = torch.randn(64, generator=torch.Generator().manual_seed(0))
    assert checksums.decay_factor(old * 0.999, old) == pytest.approx(0.999)
    assert checksums.decay_factor(old * (1 - 1e-5), old) == pytest.approx(1 - 1e-5, rel=1e-6)
    assert checksums.decay_factor(old * 1.1, old) is None
    assert checksums.decay_factor(old * 0.999 + 0.01, old) is None
    assert checksums.decay_factor(torch.ones(4), torch.zeros(4)) is None
    assert checksums.decay_factor(torch.tensor([1]), torch.tensor([2])) is None


def test_a_distance_is_relative_and_weighs_by_size():
    before = {"small": torch.tensor([1.0]), "large": torch.tensor([1.0])}
    now = {"small": torch.tensor([2.0]), "large": torch.tensor([1.0])}
    assert checksums.relative_distance(now, before, {"small": 1, "large": 3}) == pytest.approx(0.5)
    assert math.isnan(checksums.relative_distance(before, {"a": torch.zeros(1)}, {}))


def test_what_has_no_values_cannot_be_read():
    assert checksums.has_values(torch.ones(1))
    assert not checksums.has_values(torch.ones(1, device="meta"))
    assert not checksums.has_values(torch.ones(0))
    assert not checksums.has_values(torch.eye(2).to_sparse())
    assert not checksums.has_values(torch.nn.LazyLinear(2).weight)
