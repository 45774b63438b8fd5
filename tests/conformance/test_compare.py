"""The comparison of two routes: nothing that differs is overlooked, and no record outlives its difference."""

from __future__ import annotations

from tests.conformance.compare import ABSENT, Check, Difference, Known, differences, read_known, settle


def check(id: str, outcome: str = "SUCCESS", scenario: str = "ping", message: str = "") -> Check:
    return Check(scenario, id, outcome, outcome == "SUCCESS", message)


ONE = Difference("leg", "ping", "a", "SUCCESS", "FAILURE")


def test_what_is_the_same_is_no_difference() -> None:
    both = [check("a"), check("a", "WARNING"), check("b", scenario="tools")]
    assert differences("leg", both, [both[2], *both[:2]]) == []


def test_another_outcome_is_one_with_its_message() -> None:
    found = differences("leg", [check("a")], [check("a", "FAILURE", message="why")])
    assert found == [Difference("leg", "ping", "a", "SUCCESS", "FAILURE", "why")]
    assert str(found[0]) == "leg | ping | a: direct SUCCESS, through FAILURE\n    why"


def test_a_check_that_vanishes_or_appears_is_one() -> None:
    assert differences("leg", [check("a")], []) == [Difference("leg", "ping", "a", "SUCCESS", ABSENT)]
    assert differences("leg", [], [check("a")]) == [Difference("leg", "ping", "a", ABSENT, "SUCCESS")]


def test_repeated_checks_are_compared_one_by_one() -> None:
    direct = [check("a"), check("a"), check("a")]
    through = [check("a"), check("a", "FAILURE")]
    assert [(each.direct, each.through) for each in differences("leg", direct, through)] == [
        ("SUCCESS", "FAILURE"),
        ("SUCCESS", ABSENT),
    ]


def test_a_difference_on_record_is_not_wrong() -> None:
    assert settle([ONE], [Known("l*", "ping", "*", "why")], ["leg"]) == []


def test_any_other_is() -> None:
    for known in (Known("m*", "*", "*", "why"), Known("*", "pong", "*", "why"), Known("*", "*", "b", "why")):
        assert settle([ONE], [known], [])[0] == str(ONE)


def test_a_record_of_what_is_no_more_is_wrong_where_it_was_played() -> None:
    known = [Known("client*", "auth/*", "*", "why")]
    assert settle([], known, ["server"]) == []
    assert settle([], known, ["client"]) == [
        "on record, and no difference any more: client* | auth/* | *",
    ]


def test_each_record_has_its_reason() -> None:
    assert all(entry.reason for entry in read_known())
