"""The embedded dataset: splits, gold answers, determinism, and the accuracy of a blind guess."""

from __future__ import annotations

import collections
import concurrent.futures
import pickle

import numpy as np
import pytest

from zppo_jax.data import digits
from zppo_jax.data.digits import DigitsSource


def _read_back(image: np.ndarray) -> list[int]:
    """File indices of the digits in a picture, found by their pixels, in reading order."""
    originals = digits._digits()[0]
    by_pixels = {original.tobytes(): index for index, original in enumerate(originals)}
    rows, columns = image.shape[0] // 32, image.shape[1] // 32
    cells = [image[32 * r : 32 * r + 32, 32 * c : 32 * c + 32, 0] for r in range(rows) for c in range(columns)]
    return [by_pixels[np.ascontiguousarray(cell).tobytes()] for cell in cells if cell.any()]


def test_every_digit_image_is_distinct_so_that_reading_back_is_sound():
    originals = digits._digits()[0]
    assert originals.shape == (1797, 32, 32)
    assert len({original.tobytes() for original in originals}) == 1797
    assert originals.min() == 0 and originals.max() == 255


def test_splits_follow_file_order_and_share_no_digit_image():
    assert list(digits.image_indices("train")) == list(range(1297))
    assert list(digits.image_indices("test")) == list(range(1297, 1797))
    for family in ("rules", "grid"):
        used = {}
        for split in ("train", "test"):
            source = DigitsSource(family, split, 300)
            used[split] = {index for i in range(300) for index in _read_back(source[i].images[0])}
        assert max(used["train"]) < 1297 <= min(used["test"])
        assert not used["train"] & used["test"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_rules_gold_is_what_the_labels_say(split):
    source = DigitsSource("rules", split, 200, seed=3)
    rearranged = {
        "read": lambda text: text,
        "reverse": lambda text: "".join(reversed(text)),
        "rotate": lambda text: text[1:] + text[0],
        "shift": lambda text: text[-1] + text[:-1],
    }
    meaning = {"dax": "reverse", "wug": "rotate", "fep": "shift"}
    for i in range(len(source)):
        question = source[i]
        labels = "".join(map(str, digits.values_of(_read_back(question.images[0]))))
        word, rest = question.text.split(" ", 1)
        assert rest == "the digits."
        assert question.answer == rearranged[meaning.get(word, word)](labels)
        assert question.answer_type == "string"
        assert question.level == f"{'hidden' if word in meaning else 'taught'}/{word}"


def test_strategies_give_four_different_answers():
    assert digits.apply("rotate", (4, 1, 3)) == (1, 3, 4)
    assert digits.apply("shift", (4, 1, 3)) == (3, 4, 1)
    rng = np.random.default_rng(0)
    for count in digits.RULES_LENGTHS:
        for _ in range(100):
            values, _ = digits.draw_row(rng, "train", count)
            assert len(set(values)) == count
            assert len({digits.apply(strategy, values) for strategy in digits.STRATEGIES}) == 4
    with pytest.raises(ValueError, match="'mirror' is unknown"):
        digits.apply("mirror", (1, 2, 3))  # pyright: ignore[reportArgumentType]


def test_grid_gold_is_what_the_labels_say():
    source = DigitsSource("grid", "train", 300, seed=1)
    seen = set()
    for i in range(len(source)):
        question = source[i]
        labels = digits.values_of(_read_back(question.images[0]))
        task, count = question.level[:-1], int(question.level[-1])
        seen.add(task)
        assert len(labels) == count
        product = 1
        for label in labels:
            product = product * (label + 1) % 97
        signed = sum(label if k % 2 == 0 else -label for k, label in enumerate(labels))
        text = "".join(map(str, labels))
        ascending = "".join(str(d) * text.count(str(d)) for d in range(10))
        gold = {"read": text, "sorted": ascending, "sum": sum(labels), "alt": signed, "prod_mod": product}[task]
        assert question.answer == str(gold)
        assert question.answer_type == ("string" if task in ("read", "sorted") else "integer")
        assert question.text == {str(name): words for name, words in digits.GRID_TEXTS.items()}[task]
    assert seen == set(digits.TASKS)


def test_no_grid_level_of_four_or_more_digits_yields_to_a_constant_guess():
    rates = {}
    rng = np.random.default_rng(0)
    for task in digits.TASKS:
        for count in range(4, 10):
            draws = rng.choice(np.asarray(digits.image_indices("train")), (1000, count))
            answers = collections.Counter(digits.grid_answer(task, digits.values_of(row)) for row in draws)
            rates[f"{task}{count}"] = answers.most_common(1)[0][1] / 1000
    print({level: round(rate, 3) for level, rate in rates.items()})
    assert len(rates) == 30
    assert max(rates.values()) < 0.2, rates


def test_pictures_are_rgb_cells_of_32_pixels():
    for i in range(50):
        question = DigitsSource("rules", "test", 50)[i]
        (image,) = question.images
        assert image.dtype == np.uint8
        assert image.shape == (32, 32 * len(question.answer), 3)
    source = DigitsSource("grid", "test", 400)
    shapes = {(source[i].level[-1], source[i].images[0].shape[:2]) for i in range(400)}
    expected = {(str(n), (32 * r, 32 * c)) for n, layouts in digits.GRID_LAYOUTS.items() for r, c in layouts}
    assert shapes == expected
    with pytest.raises(ValueError, match="3 digits do not fit"):
        digits.compose_grid([0, 1, 2], 1, 2)


def test_the_same_index_is_the_same_question_in_any_process_thread_or_order():
    source = DigitsSource("rules", "train", 64, seed=5)
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source) and "0x" not in repr(source)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        threaded = list(pool.map(source.__getitem__, reversed(range(64))))[::-1]
    for i in range(64):
        for other in (copy[i], threaded[i], source[source.number_of(source[i].id)]):
            assert (other.id, other.text, other.answer) == (source[i].id, source[i].text, source[i].answer)
            np.testing.assert_array_equal(other.images[0], source[i].images[0])
    assert source[1].id == "digits-rules-train-000001"


def test_a_pinned_question_does_not_drift_between_versions():
    question = DigitsSource("rules", "train", 1000)[123]
    assert (question.id, question.text, question.answer) == ("digits-rules-train-000123", "reverse the digits.", "897")


def test_seed_split_and_family_give_different_questions():
    def answers(**kwargs):
        source = DigitsSource(**{"family": "rules", "split": "train", "num_questions": 50, "seed": 0} | kwargs)
        return [source[i].answer for i in range(50)]

    variants = [answers(), answers(seed=1), answers(split="test"), answers(family="grid")]
    assert len(set(map(tuple, variants))) == 4
    assert answers() == answers(num_questions=80)


def test_words_follow_the_hidden_fraction():
    source = DigitsSource("rules", "train", 4000)
    words = collections.Counter(source[i].level for i in range(4000))
    for word in digits.TAUGHT:
        assert words[f"taught/{word}"] / 4000 == pytest.approx(0.15, abs=0.02)
    for word in digits.HIDDEN:
        assert words[f"hidden/{word}"] / 4000 == pytest.approx(0.4 / 3, abs=0.02)
    none_hidden = DigitsSource("rules", "train", 200, hidden_fraction=0.0)
    assert all(none_hidden[i].level.startswith("taught/") for i in range(200))


def test_noise_keeps_range_and_shape_and_at_full_strength_hides_everything():
    rng = np.random.default_rng(0)
    image = digits.compose_row([0, 1, 2])
    heavy = digits.noisy(image, rng, 0.8)
    assert heavy.shape == image.shape and heavy.dtype == np.uint8
    assert np.abs(heavy.astype(int) - image).mean() > 40
    np.testing.assert_array_equal(digits.noisy(image, rng, 0.0), image)
    first, second = (digits.noisy(img, np.random.default_rng(7), 1.0) for img in (image, np.zeros_like(image)))
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match=r"strength=1\.5"):
        digits.noisy(image, rng, 1.5)


def test_what_does_not_exist_is_refused():
    source = DigitsSource("rules", "train", 10)
    for index in (10, -1):
        with pytest.raises(IndexError, match=f"question {index} does not exist"):
            source[index]
    for unknown in ("digits-rules-train-000010", "digits-rules-test-000001", "digits-grid-train-000001", "x"):
        with pytest.raises(KeyError, match=unknown):
            source.number_of(unknown)
    with pytest.raises(ValueError, match=r"data\.num_questions=0"):
        DigitsSource("rules", "train", 0)
    with pytest.raises(ValueError, match=r"data\.family='charts'"):
        DigitsSource("charts", "train", 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="split='dev'"):
        DigitsSource("rules", "dev", 1)  # pyright: ignore[reportArgumentType]
