"""The flat form of a finding in results.json."""

from __future__ import annotations

from xferbench.core.run import FINDING_KEYS, Finding, finding_from_json, finding_to_json
from xferbench.core.sections import flat_values

FINDING = Finding(id="a/harm/x", plugin="a", contrast="harm", verdict="PASS")


def test_an_entry_has_the_fields_of_a_finding_and_of_its_sections_in_a_fixed_order():
    assert set(FINDING_KEYS) == flat_values(FINDING).keys()
    assert tuple(finding_to_json(FINDING)) == FINDING_KEYS


def test_an_entry_gives_back_its_finding():
    assert finding_from_json(finding_to_json(FINDING), ["a"]) == FINDING
