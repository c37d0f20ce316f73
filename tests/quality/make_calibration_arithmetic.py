"""Write math-arithmetic.txt: worked arithmetic, conversions and small tables, with every result computed.

    python tests/quality/make_calibration_arithmetic.py

The file is part of the built-in calibration text. The numbers come from a generator with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import gcd, lcm
from pathlib import Path


def numbers(seed: int) -> Iterator[int]:
    """Pseudorandom numbers of 31 bits, from a linear congruential generator."""
    state = seed
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        yield state >> 33


Pick = Callable[[int, int], int]
"""Gives a number in a range, both ends included."""


def addition(pick: Pick) -> str:
    """A sum, with carries counted."""
    a, b = pick(1000, 99999), pick(1000, 99999)
    carries = sum((a % 10**k + b % 10**k) >= 10**k for k in range(1, 6))
    return f"{a} + {b} = {a + b} ({carries} carries)"


def division(pick: Pick) -> str:
    """A division with remainder and its check."""
    a, b = pick(500, 9999), pick(3, 97)
    return f"{a} : {b} = {a // b} remainder {a % b}, because {a // b} * {b} + {a % b} = {a}"


def fractions(pick: Pick) -> str:
    """A sum of fractions over the common denominator."""
    a, b = Fraction(pick(1, 9), pick(2, 12)), Fraction(pick(1, 9), pick(2, 12))
    common = lcm(a.denominator, b.denominator)
    left, right = int(a * common), int(b * common)
    reduced = f" = {a + b}" if (a + b).denominator != common else ""
    return f"{a} + {b} = {left}/{common} + {right}/{common} = {left + right}/{common}{reduced}"


def euclid(pick: Pick) -> str:
    """The Euclidean algorithm, step by step."""
    a, b = pick(100, 2000), pick(50, 900)
    start, steps = (a, b), []
    while b:
        steps.append(f"{a} = {a // b} * {b} + {a % b}")
        a, b = b, a % b
    return f"gcd{start}: " + "; ".join(steps) + f"; so it is {gcd(*start)}"


def bases(pick: Pick) -> str:
    """A number in bases ten, two and sixteen."""
    n = pick(40, 4000)
    return f"{n} is {n:b} in binary, {n:o} in octal and 0x{n:X} in hexadecimal"


def temperature(pick: Pick) -> str:
    """A temperature in two scales."""
    celsius = pick(-30, 120)
    return f"{celsius} °C = {celsius * 9 / 5 + 32:.1f} °F = {celsius + 273.15:.2f} K"


def remainder(pick: Pick) -> str:
    """A power modulo a number, by repeated squaring."""
    base, power, modulus = pick(2, 12), pick(5, 40), pick(7, 60)
    return f"{base}^{power} mod {modulus} = {pow(base, power, modulus)}"


def comparison(pick: Pick) -> str:
    """Two fractions in order."""
    a, b = Fraction(pick(1, 19), pick(3, 20)), Fraction(pick(1, 19), pick(3, 20))
    sign = "<" if a < b else ">" if a > b else "="
    return f"{a} {sign} {b}, since {float(a):.4f} {sign} {float(b):.4f}"


KINDS = (addition, division, fractions, euclid, bases, temperature, remainder, comparison)
ROUNDS = 11


TARGET = Path(__file__).parents[2] / "quantcli/quality/texts/calibration/math-arithmetic.txt"


def arithmetic() -> str:
    """The text of the file."""
    source = numbers(13)

    def pick(low: int, high: int) -> int:
        return low + next(source) % (high - low + 1)

    groups = ["\n".join(kind(pick) for kind in KINDS) for _ in range(ROUNDS)]
    return "\n\n".join(groups) + "\n"


if __name__ == "__main__":
    TARGET.write_text(arithmetic(), encoding="utf-8")
