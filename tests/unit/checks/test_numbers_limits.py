"""How near a number must be to the value, and how long it takes to find it."""

import time

import pytest

from herl.checks import KINDS
from herl.checks.numbers import gives_number, readings


@pytest.mark.parametrize(
    ("text", "value", "tolerance", "met"),
    [
        ("about 3.2", 3, 0.1, True),
        ("about 3.31", 3, 0.1, False),
        ("about 0.09", 0, 0.1, True),
        ("about 0.11", 0, 0.1, False),
        ("about 0.54", 0.5, 0.1, True),
        ("about 0.56", 0.5, 0.1, False),
        ("about 1000", 5, 0.5, False),  # relative to the value, not to what the answer says
        ("0", 6.6e-34, 1e-6, False),
        ("6.6e-34", 6.6e-34, 1e-6, True),
        ("6.7e-34", 6.6e-34, 1e-6, False),
        ("-1e-9", 1e-9, 0.5, False),
        ("1e300", 1e300, 1e-6, True),
        ("0", 0, 1e-6, True),
        ("0", 0, 0.0, True),
        ("0.1", 0.1, 0.0, True),
        ("1/3", 0.3333333, 1e-6, True),
        ("1/3", 0.33, 1e-6, False),
        ("0." + "3" * 2000, 1 / 3, 1e-6, True),
    ],
)
def test_the_tolerance_is_a_share_of_the_value_and_absolute_only_for_zero(text, value, tolerance, met):
    assert gives_number(text, value, tolerance) is met


PARTS = [
    "9", "1,", "1.", "1/", "1 ", r"\boxed{", r"\frac{", "{", "^{", "_(", r"\sqrt[", "√(", " ", "\n", "#### ", "-", "1e",
    "10^", "1 000", "x", "\\", "½", "a1.", "(1,2)", "1,000", "\t1", r"\text{", r"\text{a", r"\boxed{5}", r"\boxed{5=",
    r"- \boxed{", "_", "_a ", "5 hundred ", "~", "5~", r"-\,", "1  ", "0.(3", r"0.\overline{", r"\dot{1}", r"\ln(", "e^{",
    "(a", "(5)^", "2**", "1/-", r"1\over ", "５，", "٣٫",
]  # fmt: skip
GROUPED = [("1", ",234", ",2345"), ("1", "{,}234", "{,}2345"), ("12", ",34", ",3456"), ("12", ",34", ",3456x,"),
           ("1", ".234", ".2345"), ("1", ".234", ",5,5"), ("1", ".234", ".5"), ("1", " 234", " 2345"), ("1", "_234", "_2345"),
           ("1", "'234", "'2345x"), ("1", r"\,234", r"\,2345"), ("1", "~234", "~23"), ("1", "/2", "/x"), ("", "3,", "5,5,"),
           ("_", "a ", "_b"), ("0.", "3", "(4"), (r"\boxed{5", "+5", "}"), (r"\boxed{", "5 ", "}"), (r"\boxed{", "- ", "5}"),
           ("5", " million", "s"), ("2^", "9", ".9.9"), ("(", "5", ")^"), (r"\frac{1}{", "{a}", ""), ("1", " ", "000x")]  # fmt: skip


@pytest.mark.parametrize(("head", "part", "tail"), [*(("", part, "") for part in PARTS), *GROUPED])
def test_time_grows_with_the_length_and_not_with_its_square(head, part, tail):
    def seconds(length):
        started = time.process_time()
        readings(head + part * (length // len(part)) + tail)
        return time.process_time() - started

    # four times the length: 4 times the time, or 16 times if it were quadratic
    assert any(seconds(16_000) <= 8 * seconds(4_000) + 0.03 for _ in range(4))


def test_an_event_loop_does_not_wait_for_it():
    assert KINDS["numeric"].slow
