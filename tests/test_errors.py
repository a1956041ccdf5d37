import pytest

from ncsn_jax.errors import UserError, differences, show


@pytest.mark.parametrize(
    ("there", "here", "text"),
    [
        ({"a": 1}, {"a": 1}, ""),
        (
            {"b": 1, "a": "x"},
            {"b": 2, "a": "y"},
            "a is 'x' there and 'y' here; b is 1 there and 2 here",
        ),
        ({}, {"a": 1}, "a is 'absent' there and 1 here"),
        ({"a": [1]}, {}, "a is [1] there and 'absent' here"),
    ],
)
def test_differences_name_each_field_with_both_values(there, here, text):
    assert differences(there, here) == text


def test_differences_name_the_first_few_and_count_the_rest():
    there, here = dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2) | {"c": 1}
    named = "a is 1 there and 2 here; b is 1 there and 2 here; d is 1 there and 2 here"
    assert differences(there, here, most=4) == f"{named}; e is 1 there and 2 here"
    assert differences(there, here, most=3) == f"{named}; and 1 more"


def test_messages_are_cut_and_escaped_to_one_line():
    assert str(UserError("a\nb")) == "a\\nb"
    assert len(str(UserError("x" * 10**6))) < 4000
    assert show(10**5000) == "<int>" and show("y" * 10**6).endswith("yyy ...")


def test_user_errors_escape_unprintable_characters():
    assert str(UserError("a\nb \ud800\x1b[1m é図")) == r"a\nb \ud800\x1b[1m é図"
    assert len(str(UserError("x" * 10**6))) < 4000
