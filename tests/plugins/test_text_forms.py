"""Mistakes with texts, and the forms that an audit tries: one setting each."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from xferbench.core.transforms import Tokens
from xferbench.plugins.text_forms import TEXT_MISTAKES, text_forms, text_mistakes

FORM = Tokens(tokenizer="digest", lowercase=True, max_length=40)


def changed_fields(form, other):
    return {field.name for field in fields(form) if getattr(form, field.name) != getattr(other, field.name)}


def test_each_mistake_changes_one_setting_and_the_missing_mask_needs_padding():
    mistakes = text_mistakes(FORM, limit=64)
    assert tuple(mistakes) == TEXT_MISTAKES
    for name, mistake in mistakes.items():
        assert len(changed_fields(FORM, mistake)) == (2 if name == "unmasked" else 1)


@pytest.mark.parametrize(("limit", "extra"), [(512, 16), (50, 10), (40, 0), (8, 0)])
def test_more_padding_stays_within_the_limit_of_the_network(limit, extra):
    assert text_mistakes(FORM, limit)["unmasked"].extra_padding == extra


def test_a_truncated_text_keeps_a_quarter_and_four_tokens_at_least():
    assert text_mistakes(FORM, 64)["truncated"].max_length == 10
    assert text_mistakes(replace(FORM, max_length=8), 64)["truncated"].max_length == 4


def test_the_forms_of_an_audit_change_one_setting_each_and_never_the_vocabulary():
    forms = list(text_forms(FORM))
    assert len(forms) == len(set(forms)) == 6
    assert all(len(changed_fields(FORM, form)) == 1 for form in forms)
    assert not any(form.shuffled for form in forms)
