"""Every reason has one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xferbench.analysis.estimates import UNDECIDED
from xferbench.core.reason import Code, because
from xferbench.core.run import Finding
from xferbench.report import messages
from xferbench.study.draft import Draft

ESTIMATE = replace(UNDECIDED, harm=0.051, low=0.02, high=0.08)
FINDING = Finding(id="a/harm", plugin="a", contrast="harm", verdict="FAIL", remedy={"text": "change it", "patch": []})


def test_every_code_has_exactly_one_sentence():
    tables = (messages.PLAIN, messages.WITH_MARGIN, messages.WITH_REASON, messages.SPECIAL)
    codes = [code for table in tables for code in table]
    assert sorted(codes, key=lambda code: code.value) == list(Code)


def test_numbers_have_the_unit_of_the_metric():
    reason = because(Code.ABOVE_MARGIN, margin=0.03)
    assert messages.write_sentence(reason, "accuracy") == "harm is above the margin of 3.0 points"
    assert messages.write_sentence(reason, "nats") == "harm is above the margin of 0.030 nats"


def test_a_reason_may_contain_another():
    inner_reason = because(Code.WORSE_BY_LESS, margin=0.02)
    assert messages.write_sentence(because(Code.FAIL_GREW, why=inner_reason), "accuracy").endswith(
        "but this run is worse by less than the margin of 2.0 points, if at all"
    )


def test_a_followup_ends_the_reason_and_the_remaining_harm_ends_the_remedy():
    followup = because(Code.LEFT_AFTER_REPAIR, by="b", verdict="PASS", estimate=ESTIMATE)
    reasons = (because(Code.TEXT, text=""), because(Code.ABOVE_MARGIN, margin=0.03))
    (finding,) = messages.write_findings([Draft(finding=FINDING, reasons=reasons, followup=followup, remaining=ESTIMATE)])
    assert finding.reason == (
        "harm is above the margin of 3.0 points; after the repair of b, this failure is gone: +5.1 points [+2.0, +8.0]"
    )
    assert finding.remedy["text"] == "change it; the harm is then +5.1 points [+2.0, +8.0]"


def test_a_note_about_dropped_examples_starts_with_its_prefix():
    entries = [f"{number} images of another size" for number in range(7)]
    note = messages.write_sentence(because(Code.DROPPED_EXAMPLES, entries=entries))
    assert note.startswith(f"{messages.DROPPED_PREFIX} or resolved: 0 images of another size; 1 images")
    assert note.endswith("4 images of another size; and 2 more")


def test_an_empty_text_gives_no_empty_parentheses():
    inner_reason = because(Code.NOT_TESTED_BEFORE)
    assert messages.write_sentence(because(Code.OWN_VERDICT, why=inner_reason, verdict="PASS", text="")).endswith(
        "own verdict counts: PASS"
    )


def test_classes_are_listed_with_their_index():
    assert messages.write_sentence(because(Code.CLASSES, names=("cat", "dog"))) == "classes: 0 cat, 1 dog"
    many = messages.write_sentence(because(Code.CLASSES, names=tuple("abcdefghijkl")))
    assert many.endswith("8 i, 9 j, … (12 in all)")


@pytest.mark.parametrize(
    ("highest", "bits", "advice"), [(4095, 16, "bits = 12 in"), (1023, 12, "bits = 10 in"), (60000, 16, "")]
)
def test_a_note_on_sixteen_bit_files_states_the_highest_value_and_the_setting(highest, bits, advice):
    note = messages.write_sentence(because(Code.SIXTEEN_BIT, count=7, highest=highest, bits=bits))
    assert note.startswith(f"7 images have 16 bits per channel, with a highest value of {highest}; the upper 8 of {bits} bits")
    assert ("bits = " in note) == bool(advice)
    assert advice in note


def test_a_note_on_rotated_files_states_how_they_are_read():
    note = messages.write_sentence(because(Code.ROTATED, count=3, orientation="upright"))
    assert note.startswith("3 images have an EXIF orientation; they are turned upright")
