r"""Templates of golds for `benchmarks.notations`: each draws a value and writes it in many ways, right and wrong."""

from __future__ import annotations

import calendar
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple


class Case(NamedTuple):
    """A gold, and answers that are the same and others that are not."""

    gold: str
    same: list[str]
    other: list[str]
    answer_type: str = "math"


def wrapped(value: str) -> list[str]:
    """The ways in which any answer may be wrapped."""
    return [
        value,
        f"${value}$",
        f" {value} ",
        f"{value}.",
        rf"\({value}\)",
        rf"\displaystyle {value}",
        rf"\mathbf{{{value}}}",
    ]


def grouped(number: int, by: str) -> str:
    return f"{number:,}".replace(",", by)


def integers(rng: random.Random) -> Case:
    number = rng.choice([rng.randint(-99, 99), rng.randint(1000, 10**7)])
    text = str(number)
    same = [
        *wrapped(text),
        f"x={text}",
        rf"x = {text}",
        f"{text}.0",
        rf"\text{{{text}}}",
        rf"\boxed{{{text}}}",
        f"**{text}**",
    ]
    if number >= 1000:
        same += [grouped(number, by) for by in (",", "{,}", r"\,", r",\!", r"\ ", "'")]
    other = [str(number + 1), str(-number) if number else "1", str(10 * number + 1), f"{text}5", f"{number}.5"]
    return Case(text, same, other)


def fractions(rng: random.Random) -> Case:
    value = Fraction(rng.randint(1, 40), rng.randint(2, 40))
    while value.denominator == 1:
        value = Fraction(rng.randint(1, 40), rng.randint(2, 40))
    top, bottom, k = value.numerator, value.denominator, rng.randint(2, 5)
    same = [
        rf"\frac{{{top}}}{{{bottom}}}", rf"\dfrac{{{top}}}{{{bottom}}}", rf"\tfrac{{{top}}}{{{bottom}}}",
        f"{top}/{bottom}",
        f"{top} / {bottom}", rf"\frac{{{k * top}}}{{{k * bottom}}}", f"{k * top}/{k * bottom}", rf"{top} \div {bottom}",
        rf"x=\frac{{{top}}}{{{bottom}}}", rf"\frac {{{top}}} {{{bottom}}}", rf"{{\frac{{{top}}}{{{bottom}}}}}",
        rf"${top}/{bottom}$",
        rf"\cfrac{{{top}}}{{{bottom}}}", rf"\left(\frac{{{top}}}{{{bottom}}}\right)",
    ]  # fmt: skip
    if top < 10 and bottom < 10:
        same += [rf"\frac{top}{bottom}", rf"\frac {top}{bottom}"]
    other = [
        rf"\frac{{{bottom}}}{{{top}}}" if top != bottom else "2", rf"\frac{{{top + 1}}}{{{bottom}}}",
        rf"-\frac{{{top}}}{{{bottom}}}",
        f"{top}", f"{top}{bottom}", f"{float(value):.2f}" if 100 % bottom else "0.01",
    ]  # fmt: skip
    return Case(rf"\frac{{{top}}}{{{bottom}}}", same, other)


def mixed_numbers(rng: random.Random) -> Case:
    whole, bottom = rng.randint(1, 20), rng.randint(2, 12)
    top = rng.randint(1, bottom - 1)
    value = whole + Fraction(top, bottom)
    n, d = value.numerator, value.denominator
    same = [
        rf"{whole}\frac{{{top}}}{{{bottom}}}", rf"{whole} \frac{{{top}}}{{{bottom}}}", f"{whole} {top}/{bottom}",
        f"{n}/{d}",
        rf"\frac{{{n}}}{{{d}}}", rf"\dfrac{{{n}}}{{{d}}}", rf"{whole}+\frac{{{top}}}{{{bottom}}}",
        rf"{whole} + {top}/{bottom}",
        rf"x = {whole}\frac{{{top}}}{{{bottom}}}", rf"${whole}\dfrac{{{top}}}{{{bottom}}}$",
        rf"{whole}\,\frac{{{top}}}{{{bottom}}}",
    ]  # fmt: skip
    other = [
        rf"{whole + 1}\frac{{{top}}}{{{bottom}}}",
        rf"-{whole}\frac{{{top}}}{{{bottom}}}",
        rf"\frac{{{whole * top + whole}}}{{{bottom}}}",
        str(whole),
    ]
    return Case(
        rf"{whole}\frac{{{top}}}{{{bottom}}}",
        same,
        other,
    )


def decimals(rng: random.Random) -> Case:
    digits = rng.randint(1, 3)
    value = Fraction(rng.randint(1, 10**5), 10**digits)
    text = f"{float(value):.{digits}f}"
    if value.denominator == 1:
        return integers(rng)
    same = [
        *wrapped(text),
        f"{text}0",
        rf"\frac{{{value.numerator}}}{{{value.denominator}}}",
        f"{value.numerator}/{value.denominator}",
        f"x={text}",
        rf"x \approx {text}",
        rf"{text} \text{{ cm}}",
    ]
    other = [f"{text}1", f"-{text}", text.replace(".", ""), f"1{text}", str(int(value))]
    return Case(text, same, other)


def radicals(rng: random.Random) -> Case:
    k, root = rng.randint(2, 9), rng.choice([2, 3, 5, 6, 7, 10, 11, 13])
    same = [
        rf"{k}\sqrt{{{root}}}", rf"{k} \sqrt{{{root}}}", rf"\sqrt{{{k * k * root}}}", f"{k}√{root}",
        rf"{k}\cdot\sqrt{{{root}}}",
        rf"\sqrt{{{root}}}\cdot {k}", rf"{k}\times\sqrt{{{root}}}", rf"\frac{{{2 * k}\sqrt{{{root}}}}}{{2}}",
        f"√{k * k * root}",
        rf"x={k}\sqrt{{{root}}}", rf"{k}\sqrt {{{root}}}", rf"{k}({root})^{{1/2}}", rf"{k}\sqrt{{{root}}}\text{{ cm}}",
    ]  # fmt: skip
    other = [
        rf"{root}\sqrt{{{k}}}" if k != root else "2", rf"{k}\sqrt{{{root + 1}}}", rf"{k + 1}\sqrt{{{root}}}",
        rf"\sqrt{{{k * root}}}",
        f"√{k}{root}" if k * 10 + root != k * k * root and root < 10 else "1", rf"-{k}\sqrt{{{root}}}",
        f"{k * root ** 0.5:.2f}",
    ]  # fmt: skip
    return Case(rf"{k}\sqrt{{{root}}}", same, other)


def multiples_of_pi(rng: random.Random) -> Case:
    top, bottom = rng.randint(1, 30), rng.randint(2, 12)
    value = Fraction(top, bottom)
    n, d = value.numerator, value.denominator
    if d == 1:
        return radicals(rng)
    same = [
        rf"\frac{{{n}\pi}}{{{d}}}", rf"\frac{{{n}}}{{{d}}}\pi", rf"{n}\pi/{d}", f"{n}π/{d}",
        rf"\dfrac{{{n}\pi}}{{{d}}}",
        rf"\pi\cdot\frac{{{n}}}{{{d}}}", rf"\frac{{{n} \pi}}{{{d}}}", rf"\frac{{{2 * n}\pi}}{{{2 * d}}}",
        rf"x=\frac{{{n}\pi}}{{{d}}}",
        rf"\frac{{{n}\pi}}{{{d}}}\text{{ cm}}^2", rf"\frac{{\pi {n}}}{{{d}}}", rf"{n}\pi \div {d}",
    ]  # fmt: skip
    other = [
        rf"\frac{{{d}\pi}}{{{n}}}",
        rf"\frac{{{n + 1}\pi}}{{{d}}}",
        rf"\frac{{{n}}}{{{d}}}",
        f"{float(value) * 3.14:.2f}",
        rf"{n}\pi",
    ]
    return Case(rf"\frac{{{n}\pi}}{{{d}}}", same, other)


def intervals(rng: random.Random) -> Case:
    a = rng.randint(-20, 20)
    b = a + rng.randint(1, 20)
    left, right = rng.choice("(["), rng.choice(")]")
    low, high = ("<" if left == "(" else r"\le"), ("<" if right == ")" else r"\le")
    same = [
        f"{left}{a},{b}{right}", f"{left}{a}, {b}{right}", rf"\left{left}{a},{b}\right{right}",
        rf"\bigl{left}{a},{b}\bigr{right}",
        f"{a} {low} x {high} {b}", rf"x \in {left}{a},{b}{right}", rf"x\in \left{left}{a}, {b}\right{right}",
        f"${left}{a},{b}{right}$",
        rf"\{{x \mid {a} {low} x {high} {b}\}}", f"{left} {a} , {b} {right}", rf"\Big{left}{a},{b}\Big{right}",
    ]  # fmt: skip
    flipped = "[" if left == "(" else "("
    other = [
        f"{flipped}{a},{b}{right}",
        f"{left}{a},{b + 1}{right}",
        f"{left}{a - 1},{b}{right}",
        f"{a}",
        rf"\{{{a},{b}\}}" if left != "(" or right != ")" else "0",
    ]
    return Case(f"{left}{a},{b}{right}", same, other)


def tuples(rng: random.Random) -> Case:
    a, b = rng.sample(range(-30, 31), 2)
    same = [
        f"({a},{b})", f"({a}, {b})", rf"\left({a},{b}\right)", rf"({a},\,{b})", f"$({a},{b})$", f"（{a}，{b}）",
        rf"(x,y)=({a},{b})",
        f"( {a} , {b} )", rf"\big({a},{b}\big)", f"({a}.0,{b})", rf"({a},\ {b})",
    ]  # fmt: skip
    other = [
        f"({b},{a})",
        f"({a},{b + 1})",
        f"({-a if a else 1},{b})",
        f"({a},{b},{a})",
        f"[{a},{b}]" if a < b else f"({a})",
        f"{a}{b}",
    ]
    return Case(f"({a},{b})", same, other)


def sets(rng: random.Random) -> Case:
    items = rng.sample(range(-20, 40), rng.randint(2, 4))
    listed = ", ".join(map(str, items))
    mixed = rng.sample(items, len(items))
    same = [
        rf"\{{{listed}\}}", rf"\left\{{{listed}\right\}}", rf"\{{{','.join(map(str, mixed))}\}}", listed,
        ", ".join(map(str, mixed)),
        rf"\lbrace {listed} \rbrace", f"$\\{{{listed}\\}}$",
        " and ".join(map(str, items)) if len(items) == 2 else listed,
        rf"\big\{{{listed}\big\}}", rf"\{{ {listed} \}}", ",".join(f"{item}.0" for item in items),
    ]  # fmt: skip
    other = [
        rf"\{{{listed}, 99\}}",
        rf"\{{{', '.join(map(str, items[1:]))}\}}",
        ", ".join(map(str, [items[0] + 100, *items[1:]])),
        str(sum(items)) + "1",
    ]
    return Case(rf"\{{{listed}\}}", same, other)


def matrices(rng: random.Random) -> Case:
    rows = [[rng.randint(-9, 9) for _ in range(2)] for _ in range(2)]
    flat = [item for row in rows for item in row]

    def write(kind: str, between: str, end: str, values: Sequence[int] = flat) -> str:
        return rf"\begin{{{kind}}}{values[0]}{between}{values[1]}{end}{values[2]}{between}{values[3]}\end{{{kind}}}"

    kinds = [
        ("pmatrix", "&", r"\\"),
        ("pmatrix", " & ", r" \\ "),
        ("bmatrix", "&", r"\\"),
        ("pmatrix", " & ", r"\\[4pt]"),
    ]
    same = [write(*kind) for kind in kinds] + [f"${write(*kind)}$" for kind in kinds]
    same += [
        rf"A={write(*kinds[0])}",
        rf"\left[\begin{{array}}{{cc}}{flat[0]}&{flat[1]}\\{flat[2]}&{flat[3]}\end{{array}}\right]",
    ]
    same += [rf"\left(\begin{{array}}{{rr}}{flat[0]} & {flat[1]} \\ {flat[2]} & {flat[3]}\end{{array}}\right)"]
    turned = [flat[1], flat[0], *flat[2:]], [flat[0], flat[2], flat[1], flat[3]], [flat[0] + 1, *flat[1:]], flat[::-1]
    return Case(
        write("pmatrix", " & ", r" \\ "), same, [write("pmatrix", " & ", r" \\ ", one) for one in turned if one != flat]
    )


def polynomials(rng: random.Random) -> Case:
    a, b, c = rng.randint(2, 9), rng.randint(1, 9), rng.randint(1, 9)
    same = [
        f"{a}x^2+{b}x+{c}", f"{a}x^2 + {b}x + {c}", f"{c}+{b}x+{a}x^2", f"{a}x^{{2}}+{b}x+{c}",
        rf"{a}\cdot x^2+{b}x+{c}",
        f"{a} x^2+{b} x+{c}", f"x({a}x+{b})+{c}", f"y={a}x^2+{b}x+{c}", f"f(x)={a}x^2+{b}x+{c}", f"${a}x^2+{b}x+{c}$",
        rf"{a}x^2+{b}\cdot x+{c}", f"{a}x²+{b}x+{c}",
    ]  # fmt: skip
    other = [f"{a}x^2+{b}x-{c}", f"{a + 1}x^2+{b}x+{c}", f"{a}x^2+{b}+{c}", f"{a}x^3+{b}x+{c}", f"{a + b + c}"]
    return Case(f"{a}x^2+{b}x+{c}", same, other)


def equations(rng: random.Random) -> Case:
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 30)
    same = [
        f"{a}x+{b}y={c}", f"{a}x + {b}y = {c}", f"{b}y+{a}x={c}", f"{a}x+{b}y-{c}=0", f"{2 * a}x+{2 * b}y={2 * c}",
        f"{c}={a}x+{b}y",
        rf"y=\frac{{{c}-{a}x}}{{{b}}}", f"${a}x+{b}y={c}$", f"-{a}x-{b}y=-{c}", rf"{a}x+{b}y-{c} = 0",
    ]  # fmt: skip
    other = [f"{a}x-{b}y={c}", f"{a}x+{b}y={c + 1}", f"{a + 1}x+{b}y={c}", f"{a}x+{b}y=-{c}", f"{c}"]
    return Case(f"{a}x+{b}y={c}", same, other)


def percentages(rng: random.Random) -> Case:
    number = rng.randint(1, 99)
    same = [
        rf"{number}\%", f"{number}%", f"{number} %", rf"{number} \%", f"{number} percent",
        rf"{number}\text{{ percent}}", f"{number}",
        f"0.{number:02d}", f"{number}.0%", rf"\frac{{{number}}}{{100}}", f"x={number}\\%",
    ]  # fmt: skip
    other = [rf"{number + 1}\%", f"0.{number:02d}%", f"{number * 10}", f"-{number}%", f"{number}00%"]
    return Case(rf"{number}\%", same, other)


def quantities(rng: random.Random) -> Case:
    number, (unit, name, larger) = (
        rng.randint(2, 500),
        rng.choice([("cm", "centimeters", "m"), ("kg", "kilograms", "t"), ("km", "kilometers", "m")]),
    )
    same = [
        rf"{number}\text{{ {unit}}}", f"{number} {unit}", f"{number}{unit}", rf"{number}\,\text{{{unit}}}",
        rf"{number}\ \mathrm{{{unit}}}", f"{number} {name}",
        f"{number}", rf"{number}~\text{{{unit}}}", f"{number}.0 {unit}", rf"x={number}\text{{ {unit}}}",
        rf"{number} \textrm{{ {unit}}}", f"${number}$ {unit}",
    ]  # fmt: skip
    other = [f"{number} {larger}", f"{number + 1} {unit}", f"{number} {unit}^2", f"-{number} {unit}", f"{number} s"]
    return Case(rf"{number}\text{{ {unit}}}", same, other)


def powers_of_ten(rng: random.Random) -> Case:
    digit, exponent = rng.randint(1, 9), rng.randint(3, 9)
    same = [
        rf"{digit}\times10^{{{exponent}}}", rf"{digit} \times 10^{{{exponent}}}", rf"{digit}\cdot 10^{exponent}",
        f"{digit}e{exponent}", f"{digit}*10^{exponent}",
        str(digit * 10**exponent), grouped(digit * 10**exponent, ","), f"{digit}×10^{exponent}",
        f"{digit}.0e{exponent}", rf"x={digit}\times10^{exponent}",
        f"{digit} x 10^{exponent}", grouped(digit * 10**exponent, r"\,"),
    ]  # fmt: skip
    other = [
        rf"{digit}\times10^{{{exponent + 1}}}",
        rf"{digit}\times10^{{-{exponent}}}",
        f"{digit}{exponent}",
        f"{digit}",
        rf"{digit + 1}\times10^{{{exponent}}}",
    ]
    return Case(rf"{digit}\times10^{{{exponent}}}", same, other)


def dates(rng: random.Random) -> Case:
    year, month, day = rng.randint(1900, 2030), rng.randint(1, 12), rng.randint(1, 28)
    same = [
        f"{year}-{month:02d}-{day:02d}",
        f"{year}-{month}-{day}",
        f"$ {year}-{month:02d}-{day:02d} $",
        rf"\text{{{year}-{month:02d}-{day:02d}}}",
        f"{year}–{month:02d}–{day:02d}",
        f"{year}/{month:02d}/{day:02d}",
        f"{year}.{month:02d}.{day:02d}",
        f"{year}年{month}月{day}日",
        f"{calendar.month_name[month]} {day}, {year}",
        f"{day} {calendar.month_abbr[month]} {year}",
        rf"\text{{{calendar.month_abbr[month]}. {day}, {year}}}",
    ]
    other = [
        f"{year}-{month:02d}-{day + 1:02d}",
        f"{year + 1}-{month:02d}-{day:02d}",
        f"{year}",
        f"{year - month - day}",
    ]
    if month != day:
        other.append(f"{year}-{day:02d}-{month:02d}")
    return Case(f"{year}-{month:02d}-{day:02d}", same, other)


def times(rng: random.Random) -> Case:
    hour, minute = rng.randint(1, 12), rng.randint(0, 59)
    text = f"{hour}:{minute:02d}"
    same = [
        text, f"{hour:02d}:{minute:02d}", f"${text}$", rf"\text{{{text}}}", f" {text} ", f"{text}.", f"**{text}**",
        text.replace(":", "："), text.replace(":", "{:}"), rf"\mathbf{{{text}}}", rf"\({text}\)",
    ]  # fmt: skip
    other = [
        f"{hour % 12 + 1}:{minute:02d}",
        f"{hour}:{(minute + 1) % 60:02d}",
        str(hour),
        f"{hour}{minute:02d}",
        f"{2 * hour}:{2 * minute:02d}" if minute else "0",
    ]
    return Case(text, same, other)


def inequalities(rng: random.Random) -> Case:
    number, sign = rng.randint(-20, 20), rng.choice([">", r"\ge", "<", r"\le"])
    mirrored = {">": "<", r"\ge": r"\le", "<": ">", r"\le": r"\ge"}[sign]
    bounds = {
        ">": rf"({number},\infty)",
        r"\ge": rf"[{number},\infty)",
        "<": rf"(-\infty,{number})",
        r"\le": rf"(-\infty,{number}]",
    }[sign]
    same = [
        f"x{sign} {number}", f"x {sign} {number}", f"{number} {mirrored} x", bounds, rf"x \in {bounds}",
        f"${bounds}$", bounds.replace(",", ", "),
        rf"\{{x \mid x {sign} {number}\}}",
        bounds.replace(r"\infty", r"+\infty") if ">" in sign or "ge" in sign else bounds, f"x {sign} {number}.0",
    ]  # fmt: skip
    other = [f"x {mirrored} {number}", f"x {sign} {number + 1}", f"x = {number}", str(number)]
    return Case(f"x {sign} {number}", same, other)


def ratios(rng: random.Random) -> Case:
    a, b, c = rng.sample(range(1, 10), 3)
    text = f"{a}:{b}:{c}"
    same = [
        text, f"{a} : {b} : {c}", f"{2 * a}:{2 * b}:{2 * c}", f"${text}$", f"x:y:z={text}", text.replace(":", "∶"),
        rf"\text{{{text}}}", f"{a} to {b} to {c}",
        rf"\frac{{{a}}}{{2}}:\frac{{{b}}}{{2}}:\frac{{{c}}}{{2}}", f"{text}.",
        text.replace(":", "："), f"**{text}**",
    ]  # fmt: skip
    other = [f"{b}:{a}:{c}", f"{a}:{b}", f"{a}:{b}:{c + 1}", f"{a * c}:{b}", str(a), rf"\frac{{{a}}}{{{b * c}}}"]
    return Case(text, same, other)


def complex_numbers(rng: random.Random) -> Case:
    a, b = rng.randint(1, 20), rng.randint(2, 20)
    text = f"{a}+{b}i"
    same = [
        *wrapped(text), f"{b}i+{a}", f"z={text}", rf"{a} + {b}\,i", rf"{a}+{b}\mathrm{{i}}", f"({text})",
        rf"{a}+{b}\cdot i", f"i({b}-{a}i)",
    ]  # fmt: skip
    other = [f"{a}-{b}i", f"{b}+{a}i" if a != b else "1", f"{a + b}", f"{a}+{b}", f"-{a}-{b}i", f"{a}+{b + 1}i"]
    return Case(text, same, other)


def listed_quantities(rng: random.Random) -> Case:
    a, b = rng.sample(range(2, 99), 2)
    text = rf"{a}\text{{ cm}}, {b}\text{{ cm}}"
    same = [
        text, f"{a}, {b}", f"{a} cm, {b} cm", rf"{b}\text{{ cm}}, {a}\text{{ cm}}",
        rf"{10 * a}\text{{ mm}}, {b}\text{{ cm}}",
        f"{a} cm and {b} cm", rf"{a}\ \mathrm{{cm}},\ {b}\ \mathrm{{cm}}", f"${a}$ cm, ${b}$ cm", f"{a} and {b}",
        rf"\{{{a}, {b}\}}", f"{a}.0 cm, {b} cm",
    ]  # fmt: skip
    other = [f"{a} m, {b} m", f"{a} cm", f"{a} cm, {b + 1} cm", f"({b}, {a + 1})", f"{a + b} cm", f"{a} cm, {b} m"]
    return Case(text, same, other)


KINDS: tuple[Callable[[random.Random], Case], ...] = (
    integers, fractions, mixed_numbers, decimals, radicals, multiples_of_pi, intervals, tuples, sets, matrices,
    polynomials, equations, percentages, quantities, powers_of_ten, dates, times, inequalities,
    ratios, complex_numbers, listed_quantities,
)  # fmt: skip
