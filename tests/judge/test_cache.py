"""Verdicts on disk: none is asked twice, whatever kills or shares or damages the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests import runs
from tests.judge.conftest import cases
from zppo_jax.judge import Case, Ruling
from zppo_jax.judge.cache import Kept, VerdictCache, key_of

CASE = Case("q", "g", "r")


def entry(number: int, ruling: Ruling = Ruling.WRONG, step: int = 1) -> dict[bytes, Kept]:
    return {b"%016d" % number: Kept(ruling, step)}


def test_a_verdict_depends_on_all_that_was_asked():
    keys = {key_of(CASE._replace(**{name: "x"}), "m", 512) for name in Case._fields}
    keys |= {
        key_of(CASE, "m", 512),
        key_of(CASE, "n", 512),
        key_of(CASE, "m", 511),
        key_of(Case("q", "gr", ""), "m", 512),
    }
    assert len(keys) == 8 and key_of(CASE, "m", 512) == key_of(CASE, "m", 512)
    assert key_of(Case("\\ud800", "g", "r"), "m", 1) != key_of(Case("\ud800", "g", "r"), "m", 1)


def test_a_second_judge_makes_no_request(make, endpoint):
    asked = [*cases(5), *cases(5, response="rain")]
    first = make("honest-first").judge
    rulings = first.decide(asked)
    first.close()
    before = len(endpoint.requests())
    second = make("honest-first").judge
    second.begin(2)
    assert second.decide(asked) == rulings and len(endpoint.requests()) == before
    assert second.counts() == {"judged": 0, "cached": 10, "malformed": 0, "failed": 0}
    make("honest-last").judge.decide(asked[:2])
    assert len(endpoint.requests()) == before + 2, "another model judges by itself"


def test_a_step_that_is_made_again_counts_the_same(make, endpoint):
    """After a kill, with some of its verdicts kept and some not."""
    early, late = cases(6), [*cases(3, response="rain"), *cases(6), *cases(3, response="rain")]
    first = make("says:{}").judge
    first.decide(early)
    first.begin(2)
    first.decide(late[:2])
    first.close()
    again = make("says:{}").judge
    again.begin(2)
    again.decide(late)
    assert again.counts() == {"judged": 3, "cached": 9, "malformed": 12, "failed": 0}


def test_what_failed_is_not_kept(make, tmp_path):
    made = make("status:400")
    assert made.judge.decide(cases(1)) == [Ruling.FAILED]
    made.judge.close()
    assert sqlite3.connect(tmp_path / "verdicts.sqlite").execute("SELECT count(*) FROM verdicts").fetchone() == (0,)


def test_the_first_verdict_stays_and_the_oldest_make_room(tmp_path):
    cache = VerdictCache(tmp_path / "v", pytest.fail, limit=3)
    cache.add(entry(1) | entry(2))
    cache.add(entry(2, Ruling.CORRECT, 7) | entry(3) | entry(4))
    found = cache.get(key for number in range(6) for key in entry(number))
    assert found == entry(2) | entry(3) | entry(4)
    cache.close()
    assert VerdictCache(tmp_path / "v", pytest.fail, limit=3).get(entry(3)) == entry(3)


WRITER = """
import sys
from pathlib import Path
from zppo_jax.judge import Ruling
from zppo_jax.judge.cache import Kept, VerdictCache

file, first = Path(sys.argv[1]), int(sys.argv[2])
cache = VerdictCache(file, sys.exit)
for number in range(first, first + 100_000):
    cache.add({b"%016d" % number: Kept(Ruling.WRONG, 1)})
    print(number, flush=True)
"""


def test_processes_write_together_and_a_kill_loses_nothing_that_was_kept(tmp_path):
    """kill -9 of two writers in the middle of their work."""
    file = tmp_path / "v"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file), str(first)], stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(runs.ROOT)},
        )
        for first in (0, 500_000)
    ]  # fmt: skip
    seen: list[int] = []
    for writer in writers:
        assert writer.stdout is not None
        seen += [int(writer.stdout.readline()) for _ in range(15)]
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    cache = VerdictCache(file, pytest.fail)
    assert len(cache.get(key for number in seen for key in entry(number))) == 30
    cache.add(entry(999_999))
    assert cache.get(entry(999_999)) == entry(999_999)


def test_a_damaged_file_is_put_aside(tmp_path):
    file, said, content = tmp_path / "v", [], b"no database, but of its length" * 50
    file.write_bytes(content)
    cache = VerdictCache(file, said.append)
    cache.add(entry(1))
    assert cache.get(entry(1)) == entry(1) and len(said) == 1 and "damaged" in said[0]
    assert (tmp_path / "v.damaged").read_bytes() == content


def test_a_page_that_is_damaged_later_costs_requests_only(tmp_path):
    file, said = tmp_path / "v", []
    cache = VerdictCache(file, said.append)
    for number in range(400):
        cache.add(entry(number))
    cache.close()
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    cache = VerdictCache(file, said.append)
    cache.get(key for number in range(400) for key in entry(number))
    cache.add(entry(1))
    assert len(said) == 1 and cache.get(entry(500)) in ({}, entry(500))


@pytest.mark.parametrize("broken", ["folder", "missing"])
def test_without_a_usable_file_the_judge_goes_on(make, tmp_path, broken):
    file = tmp_path / "nowhere" / "v" if broken == "missing" else tmp_path
    made = make("honest-first", file=file)
    assert made.judge.decide(cases(2)) == [Ruling.WRONG] * 2
    assert made.judge.decide(cases(2)) == [Ruling.WRONG] * 2 and made.judge.counts()["cached"] == 2
    assert len(made.said) == 1 and "not kept" in made.said[0]


def test_the_file_is_small(tmp_path):
    cache = VerdictCache(tmp_path / "v", pytest.fail)
    cache.add({os.urandom(16): Kept(Ruling.MALFORMED, 100_000) for _ in range(20_000)})
    cache.close()
    assert Path(tmp_path / "v").stat().st_size < 20_000 * 130
