"""Supervised examples of the warm start: they teach student and teacher what they know before reinforcement learning.

The student reads digits and knows the taught operations. On a hidden operation it is confidently wrong: it just reads.
Its plain labels never hold the right answer to a hidden operation. It has also learned to use candidate prompts:
- most of them come with a heavily noised image, so that the candidates must be read, not ignored;
- half of them ask a random operation and are answered by a random strategy, so that candidates can override a habit.
  The strategy is drawn uniformly and independently of the word, so nothing about the hidden rules leaks.
The teacher knows the hidden operations and errs now and then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from zppo_jax.data import digits
from zppo_jax.zppo import fallback_summary, prompts
from zppo_jax.zppo.prompts import Template


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A user turn with its images and the response to learn (without the prefilled `<think>` and the stop token)."""

    text: str
    image: np.ndarray
    response: str


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Probabilities of the recipe; the module's docstring explains their purpose."""

    hidden_fraction: float = 0.35
    habit: float = 1.0
    teacher_error: float = 0.15
    candidate_noise: float = 0.6
    candidate_random: float = 0.5
    noise_low: float = 0.6
    noise_high: float = 0.95
    light_noise: float = 0.5
    light_noise_high: float = 0.4


def response(read: Sequence[int], answer: str) -> str:
    """Writes a short reasoning (the digits as read), then the box."""
    return f"{digits.joined(read)}\n</think>\n\n\\boxed{{{answer}}}"


def candidate(read: Sequence[int], answer: str) -> str:
    """Writes the same response as it appears in a candidate block."""
    return fallback_summary(f"<think>\n{response(read, answer)}", answer, lambda text: text)


def misread(values: Sequence[int], rng: np.random.Generator) -> tuple[int, ...]:
    """Replaces one digit by another value."""
    place = int(rng.integers(len(values)))
    other = [value for value in range(10) if value not in values]
    return (*values[:place], int(rng.choice(other)), *values[place + 1 :])


def _others(strategy: str, rng: np.random.Generator) -> list[str]:
    """The other strategies in random order."""
    return [str(name) for name in rng.permutation([name for name in digits.STRATEGIES if name != strategy])]


def _solve(strategy: str, values: Sequence[int]) -> str:
    return digits.joined(digits.apply(strategy, values))  # pyright: ignore[reportArgumentType]


def _draw(rng: np.random.Generator) -> tuple[tuple[int, ...], np.ndarray]:
    return digits.draw_row(rng, "train", int(rng.choice(digits.RULES_LENGTHS)))


def _question(word: str) -> str:
    return f"{word} the digits."


def plain(rng: np.random.Generator, mixture: Mixture, template: Template, teacher: bool) -> Example:
    """Draws a plain question. Hidden operation: the teacher mostly knows it; the student never does."""
    word = digits.draw_word(rng, mixture.hidden_fraction)
    values, image = _draw(rng)
    if rng.random() < mixture.light_noise:  # 1,297 images are soon memorised; held-out writers are not
        image = digits.noisy(image, rng, float(rng.uniform(0.0, mixture.light_noise_high)))
    true = digits.OPERATIONS[word].strategy
    strategy: str = true
    if teacher and rng.random() < mixture.teacher_error:
        strategy = _others(true, rng)[0]
    elif not teacher and word in digits.HIDDEN:
        wrong = [name for name in _others(true, rng) if name != "read"]
        strategy = "read" if rng.random() < mixture.habit else wrong[0]
    return Example(prompts.plain_text(_question(word), template), image, response(values, _solve(strategy, values)))


def _setting(rng: np.random.Generator, mixture: Mixture) -> tuple[str, str, tuple[int, ...], np.ndarray]:
    """Draws the word, answering strategy, digits and (often noised) image of a candidate prompt."""
    values, image = _draw(rng)
    if rng.random() < mixture.candidate_noise:
        image = digits.noisy(image, rng, float(rng.uniform(mixture.noise_low, mixture.noise_high)))
    if rng.random() < mixture.candidate_random:
        return str(rng.choice(list(digits.OPERATIONS))), str(rng.choice(digits.STRATEGIES)), values, image
    word = str(rng.choice(digits.TAUGHT))
    return word, digits.OPERATIONS[word].strategy, values, image


def bcq(rng: np.random.Generator, mixture: Mixture, template: Template) -> Example:
    """Draws one right and one wrong candidate in random order; the label is the right one's answer."""
    word, strategy, values, image = _setting(rng, mixture)
    right = candidate(values, _solve(strategy, values))
    other = _others(strategy, rng)[0] if rng.random() < 0.75 else strategy
    read = misread(values, rng) if other == strategy else values
    pair = [right, candidate(read, _solve(other, read))]
    first, second = (pair[i] for i in rng.permutation(2))
    text = prompts.bcq_text(_question(word), first, second, template)
    return Example(text, image, response(values, _solve(strategy, values)))


def ncq(rng: np.random.Generator, mixture: Mixture, template: Template) -> Example:
    """Draws 5 to 8 wrong candidates, mostly the same mistake; the label is an answer that is not among them."""
    word, strategy, values, image = _setting(rng, mixture)
    wrong = _others(strategy, rng)[: int(rng.choice([1, 2], p=[0.7, 0.3]))]
    attempts = []
    for _ in range(int(rng.integers(5, 9))):
        read = misread(values, rng) if rng.random() < 0.1 else values
        answer = _solve(str(rng.choice(wrong)), read)
        attempts.append((candidate(read, answer), answer))
    listed = list(dict.fromkeys(answer for _, answer in attempts))
    text = prompts.ncq_text(_question(word), listed, [shown for shown, _ in attempts], template)
    return Example(text, image, response(values, _solve(strategy, values)))
