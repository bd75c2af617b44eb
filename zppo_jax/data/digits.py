"""The embedded dataset: scikit-learn's real handwritten digits, composed into small pictures with a question.

Two families. `grid` asks about the digits themselves (reading, sorting, sums) and is hard by perception and arithmetic.
`rules`, the default, is **constructed**: it names an operation, and the question does not explain what some operations
mean. A student that reads every digit still never tries the right operation by itself. This is the exploration
bottleneck in which ZPPO's effect shows within minutes. On purpose, the student lacks a rule and not perception; a
result on it shows that the method runs as described and is not evidence about real benchmarks.

The 1,797 images (8x8 pixels, 17 grey levels) are split by their order in the file, which groups them by writer: no
image is in both splits, and hardly any writer is.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from zppo_jax.types import Question

Family = Literal["rules", "grid"]
Split = Literal["train", "test"]
Strategy = Literal["read", "reverse", "rotate", "shift"]
Task = Literal["read", "sorted", "sum", "alt", "prod_mod"]

CELL = 32
"""Side of one digit in pixels: one merged vision token of Qwen3.5 (patch 16, merge 2) sees one digit."""

NUM_TRAIN_IMAGES = 1297
_ENLARGEMENT = CELL // 8

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
TASKS: tuple[Task, ...] = get_args(Task)


@dataclasses.dataclass(frozen=True)
class Operation:
    """The meaning of an operation word, and whether the warm start may teach it."""

    strategy: Strategy
    taught: bool


OPERATIONS: dict[str, Operation] = {
    "read": Operation("read", taught=True),
    "reverse": Operation("reverse", taught=True),
    "rotate": Operation("rotate", taught=True),
    "shift": Operation("shift", taught=True),
    "dax": Operation("reverse", taught=False),
    "wug": Operation("rotate", taught=False),
    "fep": Operation("shift", taught=False),
}
TAUGHT: tuple[str, ...] = tuple(word for word, operation in OPERATIONS.items() if operation.taught)
HIDDEN: tuple[str, ...] = tuple(word for word, operation in OPERATIONS.items() if not operation.taught)

RULES_LENGTHS = (3, 4)
"""Possible numbers of digits in a `rules` question: below 3, rotate, shift and reverse are the same operation."""

GRID_LAYOUTS: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((1, 1),),
    2: ((1, 2), (2, 1)),
    3: ((1, 3), (3, 1)),
    4: ((2, 2),),
    5: ((2, 3), (3, 2)),
    6: ((2, 3), (3, 2)),
    7: ((3, 3),),
    8: ((3, 3),),
    9: ((3, 3),),
}
"""The possible (rows, columns) of a grid by its number of digits; cells left over at the end stay black."""

GRID_TEXTS: dict[Task, str] = {
    "read": "Read the digits row by row.",
    "sorted": "Sort the digits from small to large.",
    "sum": "What is the sum of the digits?",
    "alt": "Row by row, what is the first digit minus the second plus the third minus the fourth and so on?",
    "prod_mod": "Add 1 to each digit and multiply the results. What is the remainder after division by 97?",
}


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """All enlarged digits, uint8 [1797, 32, 32], and their values, int [1797]; read once per process, on first use."""
    from sklearn.datasets import load_digits  # imports of about a second, which a run on other data is spared

    bunch = load_digits()
    grey = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    # Nearest neighbour: nothing is invented, and the pixels do not depend on the version of an image library.
    enlarged = grey.repeat(_ENLARGEMENT, axis=1).repeat(_ENLARGEMENT, axis=2)
    values = np.asarray(bunch.target)  # pyright: ignore[reportAttributeAccessIssue]
    enlarged.setflags(write=False)
    values.setflags(write=False)
    return enlarged, values


def image_indices(split: Split) -> range:
    """Indices, in file order, of the digit images of a split."""
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} is unknown; use one of {get_args(Split)}")
    return range(NUM_TRAIN_IMAGES) if split == "train" else range(NUM_TRAIN_IMAGES, len(_digits()[1]))


def values_of(indices: Sequence[int]) -> tuple[int, ...]:
    """The labels of digit images."""
    return tuple(int(value) for value in _digits()[1][list(indices)])


def compose_grid(indices: Sequence[int], rows: int, columns: int) -> np.ndarray:
    """Digit images laid out row by row: RGB uint8 [32 * rows, 32 * columns, 3]; cells left over are black."""
    if len(indices) > rows * columns:
        raise ValueError(f"{len(indices)} digits do not fit into {rows} x {columns} cells; use a larger layout")
    cells = np.zeros((rows * columns, CELL, CELL), np.uint8)
    cells[: len(indices)] = _digits()[0][list(indices)]
    grey = cells.reshape(rows, columns, CELL, CELL).swapaxes(1, 2).reshape(rows * CELL, columns * CELL)
    return np.repeat(grey[:, :, None], 3, axis=2)


def compose_row(indices: Sequence[int]) -> np.ndarray:
    """Digit images side by side: RGB uint8 [32, 32 * n, 3]."""
    return compose_grid(indices, 1, len(indices))


@functools.cache
def _indices_by_value(split: Split) -> tuple[np.ndarray, ...]:
    """The indices of the images of every digit value in a split."""
    indices = np.asarray(image_indices(split))
    return tuple(indices[_digits()[1][indices] == value] for value in range(10))


def draw_row(rng: np.random.Generator, split: Split, count: int) -> tuple[tuple[int, ...], np.ndarray]:
    """`count` digits with pairwise different values and their picture: (values, RGB uint8 [32, 32 * count, 3]).

    Different values make the strategies give different answers. Values are drawn uniformly, then an image of each.
    """
    values = rng.choice(10, size=count, replace=False)
    by_value = _indices_by_value(split)
    indices = [int(rng.choice(by_value[value])) for value in values]
    return tuple(int(value) for value in values), compose_row(indices)


def noisy(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The image blended with grey noise, uint8 of the same shape; strength 0 keeps it and 1 leaves no trace of it.

    The noise is constant over 4x4 pixels, one pixel of an original digit, so that averaging cannot remove it.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength={strength} must lie in [0, 1]")
    height, width = image.shape[:2]
    coarse = rng.integers(0, 256, (math.ceil(height / _ENLARGEMENT), math.ceil(width / _ENLARGEMENT), 1))
    noise = coarse.repeat(_ENLARGEMENT, axis=0).repeat(_ENLARGEMENT, axis=1)[:height, :width]
    return np.rint((1.0 - strength) * image + strength * noise).astype(np.uint8)


def apply(strategy: Strategy, digits: Sequence[int]) -> tuple[int, ...]:
    """Rearranges digits: as they are, reversed, the first moved to the end, or the last moved to the front."""
    digits = tuple(digits)
    match strategy:
        case "read":
            return digits
        case "reverse":
            return digits[::-1]
        case "rotate":
            return digits[1:] + digits[:1]
        case "shift":
            return digits[-1:] + digits[:-1]
    raise ValueError(f"strategy={strategy!r} is unknown; use one of {STRATEGIES}")


def joined(digits: Sequence[int]) -> str:
    """Digits as an answer: "0413", leading zeros kept."""
    return "".join(str(digit) for digit in digits)


def rules_question(question_id: str, word: str, digits: Sequence[int], image: np.ndarray) -> Question:
    """The `rules` question that asks for operation `word` on the digits of `image`, with its true answer."""
    operation = OPERATIONS[word]
    return Question(
        id=question_id,
        text=f"{word} the digits.",
        images=(image,),
        answer=joined(apply(operation.strategy, digits)),
        answer_type="string",
        level=f"{'taught' if operation.taught else 'hidden'}/{word}",
    )


def draw_word(rng: np.random.Generator, hidden_fraction: float) -> str:
    """An operation word: hidden with probability `hidden_fraction`, uniform within taught and within hidden."""
    return str(rng.choice(HIDDEN if rng.random() < hidden_fraction else TAUGHT))


def grid_answer(task: Task, digits: Sequence[int]) -> str:
    """The exact answer of a `grid` task on digits in reading order."""
    match task:
        case "read":
            return joined(digits)
        case "sorted":
            return joined(sorted(digits))
        case "sum":
            return str(sum(digits))
        case "alt":
            return str(sum(digits[0::2]) - sum(digits[1::2]))
        case "prod_mod":
            return str(math.prod(digit + 1 for digit in digits) % 97)
    raise ValueError(f"task={task!r} is unknown; use one of {TASKS}")


def grid_question(question_id: str, task: Task, digits: Sequence[int], image: np.ndarray) -> Question:
    """The `grid` question that asks for `task` on the digits of `image`, with its true answer."""
    return Question(
        id=question_id,
        text=GRID_TEXTS[task],
        images=(image,),
        answer=grid_answer(task, digits),
        answer_type="string" if task in ("read", "sorted") else "integer",
        level=f"{task}{len(digits)}",
    )


@dataclasses.dataclass(frozen=True)
class DigitsSource:
    """`num_questions` questions of one family and split, with random access: an index always gives the same question.

    `rules`: 3 or 4 digits in a row and an operation word, `hidden_fraction` of the questions with a hidden one; levels
    "taught/read" ... "hidden/fep". `grid`: a task on 1 to 9 digits in a grid; levels "read1" ... "prod_mod9". Maximum
    and count are not among the tasks, because a blind guess solves them.
    The source holds only its arguments, so that it is cheap to pickle and safe to read from many threads.
    """

    family: Family
    split: Split
    num_questions: int
    seed: int = 0
    hidden_fraction: float = 0.4

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ValueError(f"data.family={self.family!r} is unknown; use one of {get_args(Family)}")
        if self.split not in get_args(Split):
            raise ValueError(f"split={self.split!r} is unknown; use one of {get_args(Split)}")
        if self.num_questions < 1:
            raise ValueError(f"data.num_questions={self.num_questions} leaves no data; set it to 1 or more")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")
        if not 0.0 <= self.hidden_fraction <= 1.0:
            raise ValueError(f"hidden_fraction={self.hidden_fraction} must lie in [0, 1]")

    @property
    def answer_types(self) -> dict[str, int]:
        """The answer types of the family's golds, with the largest number of questions that may have each."""
        return dict.fromkeys(("string",) if self.family == "rules" else ("string", "integer"), self.num_questions)

    def __len__(self) -> int:
        return self.num_questions

    def __getitem__(self, index: int) -> Question:
        """Returns question `index`; raises IndexError outside [0, len)."""
        index = operator.index(index)
        if not 0 <= index < self.num_questions:
            raise IndexError(f"question {index} does not exist: {self!r} holds 0 to {self.num_questions - 1}")
        # The spawn key separates families and splits: the same seed shares no draw between them.
        stream = (get_args(Family).index(self.family), get_args(Split).index(self.split), index)
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream))
        question_id = self._id(index)
        return self._rules(question_id, rng) if self.family == "rules" else self._grid(question_id, rng)

    def ids(self) -> Iterator[str]:
        """The ids of all questions, in order."""
        return map(self._id, range(self.num_questions))

    def _id(self, index: int) -> str:
        return f"digits-{self.family}-{self.split}-{index:06d}"

    def place(self, index: int) -> str:
        """Where question `index` comes from, for errors."""
        return f"{self!r}, number {index}"

    def number_of(self, question_id: str, /) -> int:
        """The position of the question with this id; raises KeyError for an id that is not in this source."""
        match = re.fullmatch(rf"digits-{self.family}-{self.split}-(\d{{6,}})", question_id)
        if match is None or int(match[1]) >= self.num_questions:
            raise KeyError(f"question id {question_id!r} is not one of {self!r}")
        return int(match[1])

    def _rules(self, question_id: str, rng: np.random.Generator) -> Question:
        word = draw_word(rng, self.hidden_fraction)
        digits, image = draw_row(rng, self.split, int(rng.choice(RULES_LENGTHS)))
        return rules_question(question_id, word, digits, image)

    def _grid(self, question_id: str, rng: np.random.Generator) -> Question:
        task = TASKS[rng.integers(len(TASKS))]
        count = int(rng.integers(1, 10))
        layouts = GRID_LAYOUTS[count]
        rows, columns = layouts[rng.integers(len(layouts))]
        indices = [int(index) for index in rng.choice(np.asarray(image_indices(self.split)), count, replace=False)]
        return grid_question(question_id, task, values_of(indices), compose_grid(indices, rows, columns))
