"""Divide the examples of a table into splits, by its column ``split`` or without one. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError
from xferbench.data.class_folders import split_role
from xferbench.data.raw import RawSplit, balanced_order, shuffle, take

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

TEST_SHARE_DIVISOR = 5  # a fifth of the examples is the test set if the table has no splits
EXPECTED_SPLIT = "train, val, valid, validation, test"
MAX_LISTED = 6


def check_split_names(table: Path | str, names: Collection[str]) -> None:
    """Check that the names of a column ``split`` include one for training and one for selection or testing.

    Raises:
        UserError: If one is missing.
    """
    roles = {split_role(name) for name in names}
    if "train" not in roles or len(roles) < 2:
        found = ", ".join(sorted(names)) or "no rows"
        raise UserError(f"{table}: a split is missing", found=found, expected="train and val or test")


def divide(
    raw: RawSplit, split_names: Sequence[str], known: Collection[str], classes: Sequence[str], table: Path | str
) -> dict[str, RawSplit]:
    """Return the splits of the examples by ``train``, ``validation`` and ``test``. Without a test set, val is the test set.

    Args:
        raw: all examples.
        split_names: the split of each.
        known: the names of all splits, which may have more than the examples have.
        classes: the class names.
        table: the table, for messages.

    Raises:
        UserError: If a label occurs in another split and not in train.
    """
    roles, known_roles = np.array([split_role(name) for name in split_names]), {split_role(name) for name in known}
    splits = {}
    for role in ("train", *(("validation", "test") if known_roles == {"train", "validation", "test"} else ("test",))):
        part = take(raw, np.flatnonzero(roles == (role if role in known_roles else "validation")))
        splits[role] = part if role == "train" else shuffle(part)
    trained = set(splits["train"].labels.tolist())
    if unknown := sorted({int(label) for part in splits.values() for label in part.labels} - trained):
        raise UserError(
            f"{table}: labels that are missing from train",
            found=", ".join(classes[label] for label in unknown[:MAX_LISTED]),
            expected=", ".join(classes[label] for label in sorted(trained)),
        )
    return splits


def cut_test_set(
    raw: RawSplit, classes: Sequence[str], table: Path, examples: str, without: str = "no column split"
) -> tuple[dict[str, RawSplit], str]:
    """Cut a test set from the examples of a table without splits. Return the splits, and a note that says so.

    The test set is a fifth of the examples: stratified by class, with whole groups, the same in every run.

    Args:
        raw: all examples.
        classes: the class names.
        table: the table, for messages.
        examples: what the rows are, in the plural.
        without: why there is no test set, in words.

    Raises:
        UserError: If a class would be missing from one of the splits.
    """
    order = balanced_order(raw.labels, raw.groups, np.random.default_rng(0))
    size, group_text = max(len(order) // TEST_SHARE_DIVISOR, len(np.unique(raw.labels))), ""
    if len(raw.groups):
        chosen = np.unique(raw.groups[order[:size]])
        order = order[np.isin(raw.groups[order], chosen)]
        size, group_text = len(order), f" ({len(chosen)} whole groups)"
    test = np.sort(order[:size])
    rest = np.setdiff1d(np.arange(len(raw.labels)), test)
    if min(len(np.unique(raw.labels[index])) for index in (test, rest)) < len(classes):
        found = f"{len(raw.labels)} {examples}" + (f" in {len(np.unique(raw.groups))} groups" if len(raw.groups) else "")
        expected = f"enough {examples} for each class in the training and the test set, without splitting a group"
        what = f"{table}: {without}, and no test set can be cut"
        raise UserError(what, found=found, expected=expected, do="add examples, or add a column split with train and test")
    note = f"{table.name}: {without}, so {size} of {len(raw.labels)} {examples}{group_text} are the test set"
    return {"train": take(raw, rest), "test": shuffle(take(raw, test))}, note
