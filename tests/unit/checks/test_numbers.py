"""Every writing of a number, and what it must and must not equal."""

import time
from fractions import Fraction

import pytest

from herl.checks.numbers import gives_number, readings

READ = [
    # plain
    ("The answer is 42", 42),
    ("The answer is 42.", 42),
    ("42", 42),
    ("is 5.", 5),
    ("(5)", 5),
    ("**5**", 5),
    ("x=5", 5),
    ("x = 5, so we are done", 5),
    ("It is 3.14", 3.14),
    ("The answer is .5", 0.5),
    ("The answer is .5.", 0.5),
    ("so .05", 0.05),
    ("wait...5", 5),
    ("007", 7),
    ("0", 0),
    ("0.10", 0.1),
    ("$5$", 5),
    ("5!", 5),
    ("等于5", 5),
    ("答案是５。", 5),
    ("٤٢", 42),
    ("step 2.", 2),
    ("First 3, then 4", 4),
    ("2 + 3 = 5", 5),
    # sign
    ("It is -5", -5),
    ("It is −5", -5),
    ("It is –5", -5),
    ("It is +5", 5),
    ("It is -.5", -0.5),
    ("x = -5", -5),
    ("x = - 5", -5),
    ("x=-5", -5),
    ("$-5$", -5),
    ("(-5)", -5),
    ("-$5", -5),
    ("$-5.50", -5.5),
    ("It lies in 3-5", 5),
    ("It lies in 3–5", 5),
    ("7 - 5", 5),
    ("7-5", 5),
    ("COVID-19", 19),
    ("Result:\n- 5", 5),
    ("answer--5", 5),
    ("answer—5", 5),
    # thousands
    ("12 times 100 is 1,200.", 1200),
    ("1,234,567.89", 1234567.89),
    ("-1,234", -1234),
    ("1 234 567", 1234567),
    ("1\u2009234\u2009567", 1234567),
    ("1\u00a0234\u00a0567,5", 1234567.5),
    ("1\u202f000", 1000),
    ("10 000", 10000),
    ("1_000", 1000),
    ("1'000'000", 1000000),
    ("1{,}000", 1000),
    (r"1\,000", 1000),
    (r"1,\!000", 1000),
    ("12,34,567", 1234567),
    ("1,2,3", 3),
    ("1, 2, 300", 300),
    # European
    ("1.234,5", 1234.5),
    ("1.234.567", 1234567),
    ("1.234.567,89", 1234567.89),
    ("3,5", 3.5),
    ("0,5 m", 0.5),
    ("0,125", 0.125),
    ("1234,567", 1234.567),
    ("3{,}5", 3.5),
    ("the point (3,5)", 5),
    ("the point (-3,5)", 5),
    ("1,234", 1234),
    ("1.234", 1.234),
    # exponents
    ("It is 1e-3", 0.001),
    ("It is 3.2e5 m", 320000),
    ("1E6", 1000000),
    ("-1.5e+2", -150),
    ("3.2×10^5", 320000),
    ("3.2 x 10^5", 320000),
    (r"3.2 \times 10^{5}", 320000),
    (r"3.2 \cdot 10^{-2}", 0.032),
    ("3.2*10^5", 320000),
    ("3.2 * 10**5", 320000),
    ("3.2·10⁵", 320000),
    ("10⁻³", 0.001),
    ("10^5", 100000),
    ("10^{-2}", 0.01),
    ("2^10", 1024),
    ("2^{10}", 1024),
    ("-2^2", -4),
    ("1e-999999999", 0),
    # fractions
    ("3/4", 0.75),
    ("3 / 4", 0.75),
    ("-3/4", -0.75),
    ("3.5/2", 1.75),
    (r"\frac{3}{4}", 0.75),
    (r"\frac34", 0.75),
    (r"\dfrac{3}{4}", 0.75),
    (r"\tfrac{1}{2}", 0.5),
    (r"-\frac{3}{4}", -0.75),
    (r"\frac{-3}{4}", -0.75),
    (r"$\frac{ 3 }{ 4 }$.", 0.75),
    (r"\frac{1{,}000}{4}", 250),
    ("1 1/2", 1.5),
    ("-1 1/2", -1.5),
    ("It takes 2 3/4 hours", 2.75),
    ("½", 0.5),
    ("1½", 1.5),
    ("2 ¾", 2.75),
    ("⅓", Fraction(1, 3)),
    (r"1\frac{1}{2}", 1.5),
    (r"2 \frac{1}{2}", 2.5),
    ("10/2 = 5", 5),
    # percent and scale: both meanings
    ("50%", 50),
    ("50%", 0.5),
    (r"50\%", 0.5),
    ("50 %", 50),
    ("50 percent", 0.5),
    ("12.5 per cent", 12.5),
    ("5-10%", 10),
    ("5 million", 5),
    ("5 million", 5_000_000),
    ("$1.5 billion", 1_500_000_000),
    # units
    ("5 km", 5),
    ("12m", 12),
    ("$5", 5),
    (r"\$5", 5),
    ("US$5", 5),
    ("USD5", 5),
    ("5€", 5),
    ("€ 5", 5),
    ("£3.50", 3.5),
    ("30°C", 30),
    ("-30 °C", -30),
    ("5 m^2", 5),
    ("5 m²", 5),
    (r"5 \text{ cm}^{2}", 5),
    (r"5\ \mathrm{m/s}^2", 5),
    ("9.8 m/s^2", 9.8),
    ("5 km/h", 5),
    ("6 mol of H2O", 6),
    ("3 tons of CO2", 3),
    ("4 for x1", 4),
    (r"8 = x_{12}", 8),
    ("5 of v1.2.3", 5),
    ("1st", 1),
    ("10:30", 30),
    # which number
    (r"\boxed{42}", 42),
    (r"So \boxed{42}. It took 3 steps.", 42),
    (r"\boxed{1} and then \boxed{2}", 2),
    (r"\boxed{\frac{3}{4}} of 12", 0.75),
    (r"\boxed{x = 5}", 5),
    (r"\boxed{5 \text{ cm}}", 5),
    (r"\boxed{50}\%", 0.5),
    (r"$-\boxed{5}$", -5),
    (r"\boxed{\{5\}} or 6", 5),
    (r"\boxed{42} and \boxed{7", 42),
    (r"7 is \fbox{5}", 5),
    ("5 + 4 = 9\n#### 9\nThat took 2 steps", 9),
    ("#### 1,234", 1234),
    ("####-7", -7),
    ("#### $18.", 18),
    ("#### Step 2\nIt is 9", 9),
    ("#### 3. Add\nIt is 9", 9),
]  # fmt: skip

NOT_READ = [
    "", "no number", "NaN", "Infinity", "infinite", "∞", "inf", "five", "H2O", "x1", "x^2", "-", ".", "...", ",",
    r"2\sqrt{3}", r"\sqrt{2}", "√2", "sqrt(2)", "2 sqrt(2)", r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2", "2π", r"\pi",
    r"5\pi", r"\frac{\pi}{2}", "π/2", "2 pi", "pi/2", r"\frac{x}{2}", r"\frac{1}{0}", "5/0", "1.2.3", "15.01.2024",
    "3/4/2024", "192.168.0.1", r"\boxed{}", r"5 \boxed{\text{none}}", "1e400", "1e999999999", "10^{99999}",
    "9^9999999", "9" * 401, "9" * 4301, "9" * 100_000, "1e" + "9" * 5000, "2^" + "9" * 5000,
]  # fmt: skip

WRONG = [
    ("The answer is .5", 5),
    ("It is 1e-3", -3),
    ("It is 1e-3", 3),
    ("3.2e5", 5),
    ("3.2×10^5", 5),
    ("It lies in 3-5", -5),
    ("3/4", 4),
    (r"\frac{3}{4}", 4),
    ("1 1/2", 2),
    ("1,200", 200),
    ("1 234 567", 567),
    ("0,5", 5),
    ("5 m^2", 2),
    ("CO2", 2),
    (r"2\sqrt{3}", 3),
    ("-5", 5),
    ("−5", 5),
    ("0.5", 50),
    ("50", 0.5),
    (r"\boxed{42}, in 3 steps", 3),
    ("1.2.3", 3),
    ("x = - 5", 5),
]


@pytest.mark.parametrize(("text", "value"), READ)
def test_a_writing_is_read(text, value):
    assert gives_number(text, value, 1e-6), readings(text)


@pytest.mark.parametrize("text", NOT_READ, ids=lambda text: text[:20])
def test_what_is_no_number_is_not_read(text):
    assert readings(text) == ()


@pytest.mark.parametrize(("text", "value"), WRONG)
def test_a_part_of_a_writing_is_not_its_value(text, value):
    assert not gives_number(text, value, 1e-6), readings(text)


@pytest.mark.parametrize(
    ("text", "value", "tolerance", "met"),
    [
        ("about 3.2", 3, 0.1, True),
        ("about 3.31", 3, 0.1, False),
        ("about 0.09", 0, 0.1, True),
        ("about 1000", 5, 0.5, False),  # relative to the value, not to what the answer says
        ("0.1", 0.1, 0.0, True),
        ("1/3", 0.3333333, 1e-6, True),
        ("1/3", 0.33, 1e-6, False),
        ("0." + "3" * 2000, 1 / 3, 1e-6, True),
    ],
)
def test_the_tolerance_is_relative_to_the_value_and_absolute_below_one(text, value, tolerance, met):
    assert gives_number(text, value, tolerance) is met


@pytest.mark.parametrize(
    "part",
    ["9", "1,", "1.", "1/", "1 ", r"\boxed{", r"\frac{", "{", "^{", "_(", r"\sqrt[", "√(", " ", "\n", "#### ", "-",
     "1e", "10^", "1 000", "x", "\\", "½", "a1.", "(1,2)", "1,000", "\t1"],
)  # fmt: skip
def test_no_answer_takes_long(part):
    started = time.perf_counter()
    readings(part * (60_000 // len(part)))
    assert time.perf_counter() - started < 2
