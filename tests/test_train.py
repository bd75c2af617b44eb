"""The loop, end to end, on a tiny model that earns real rewards: the files of a run, and each method."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests import runs
from zppo_jax.config import to_json
from zppo_jax.errors import ConfigError
from zppo_jax.run.metrics import SCHEMA
from zppo_jax.zppo import METHODS

NUM_STEPS = runs.SETTINGS["num_steps"]
REPLAY_COUNTS = ("replay/size", "replay/admitted", "replay/graduated", "replay/evicted", "replay/graduated_total")


# ---------------------------------------------------------------- the files of a run


def test_a_run_leaves_all_its_files(straight, start):
    assert json.loads((straight / "config.json").read_text()) == to_json(runs.config(start))
    assert (straight / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((straight / "tensorboard").glob("events*"))
    assert runs.saved_steps(straight) == [3, 6]


def test_every_step_has_a_row_with_every_name(straight):
    rows = runs.metrics(straight)
    assert [row["step"] for row in rows] == list(range(NUM_STEPS + 1))
    assert all(row.keys() >= {"step", *SCHEMA} for row in rows)
    assert all(value is None or isinstance(value, int | float) for row in rows for value in row.values())
    evaluated = [row["step"] for row in rows if row["eval/accuracy"] is not None]
    assert evaluated == [0, 3, NUM_STEPS]
    assert all(row["eval/standard_error"] is not None for row in rows if row["step"] in evaluated)
    assert [row["step"] for row in rows if row["time/eval"] is not None] == evaluated
    others = ("eval/", "time/eval", "judge/", "time/judge")  # of an evaluation, of a judge
    trained = [name for name in SCHEMA if not name.startswith(others) and "cq_accuracy" not in name]
    before = ("time/records", "time/checkpoint", "replay/accuracy")  # of the previous step, or of its hard questions
    assert all(row[name] is not None for row in rows[1:] for name in trained if name not in before)
    assert all(row[name] is not None for row in rows[2:] for name in before)


def test_phases_account_for_a_step(straight):
    rows = runs.metrics(straight)[2:]
    for row in rows:
        phases = [value for name, value in row.items() if name.startswith("time/") and name != "time/step"]
        assert sum(value for value in phases if value is not None) == pytest.approx(row["time/step"])
    assert sum(row["time/unaccounted"] for row in rows) < 0.03 * sum(row["time/step"] for row in rows)


def test_no_file_holds_a_number_that_json_does_not_know(straight):
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in a file of the run")

    for name in ("metrics.jsonl", "samples.jsonl", "config.json"):
        text = (straight / name).read_text()
        for line in text.splitlines() if name.endswith("l") else [text]:
            json.loads(line, parse_constant=refuse)


def test_the_model_learns_from_rewards_of_both_kinds(straight):
    """These runs would show little if every reward were 0: there are right answers, gradients and graduations."""
    rows = runs.metrics(straight)[1:]
    assert any(row["update/grad_norm"] > 0.01 for row in rows)
    assert any(0 < row["rollout/accuracy"] < 1 for row in rows)
    assert sum(row["zppo/bcq_groups"] for row in rows) > 0 and sum(row["zppo/ncq_groups"] for row in rows) > 0
    assert rows[-1]["replay/graduated_total"] > 0
    assert all(row["update/mismatch_kl"] < 1e-4 for row in rows)


def test_samples_carry_their_lineage(straight):
    samples = runs.samples(straight)
    by_step = collections.defaultdict(dict)
    for sample in samples:
        assert sample["uid"] not in by_step[sample["step"]], "groups must never share a baseline"
        by_step[sample["step"]][sample["uid"]] = sample
    for sample in samples:
        if sample["kind"] in ("plain", "replay"):
            assert sample["parent"] is None
            continue
        parent = by_step[sample["step"]][sample["parent"]]
        assert parent["kind"] in ("plain", "replay") and parent["question_id"] == sample["question_id"]
        assert np.mean(parent["rewards"]) < 0.5 and parent["gold"] == sample["gold"]
    kinds = {sample["kind"] for sample in samples}
    assert kinds == {"plain", "replay", "bcq", "ncq"}


def test_samples_agree_with_the_metrics(straight):
    samples = runs.samples(straight)
    for row in runs.metrics(straight)[1:]:
        groups = [sample for sample in samples if sample["step"] == row["step"]]
        plain = [group for group in groups if group["kind"] in ("plain", "replay")]
        assert row["rollout/accuracy"] == pytest.approx(np.mean([group["rewards"] for group in plain]))
        assert row["rollout/hard_fraction"] == np.mean([np.mean(group["rewards"]) < 0.5 for group in plain])
        new = [np.mean(group["rewards"]) for group in plain if group["kind"] == "plain"]
        assert row["rollout/new_accuracy"] == pytest.approx(np.mean(new)), "without the replayed ones"
        assert row["rollout/new_hard_fraction"] == np.mean(np.asarray(new) < 0.5)
        statuses = sum(value for name, value in row.items() if name.startswith("reward/"))
        assert statuses == sum(len(group["rewards"]) for group in groups) and row["rollout/undecided"] == 0
        for kind, name in (("replay", "replay/groups"), ("bcq", "zppo/bcq_groups"), ("ncq", "zppo/ncq_groups")):
            assert row[name] == sum(group["kind"] == kind for group in groups)
        assert row["zppo/bcq_groups"] + row["zppo/ncq_groups"] <= 2  # half of four questions


def test_advantages_follow_the_rewards(straight):
    for sample in runs.samples(straight):
        rewards, advantages = np.asarray(sample["rewards"]), np.asarray(sample["advantages"])
        assert len(rewards) == len(advantages) == len(sample["responses"]) == runs.SETTINGS["rollout.group_size"]
        if rewards.min() == rewards.max():
            assert not advantages.any()
        else:
            assert np.all(np.sign(advantages) == np.sign(rewards - rewards.mean()))


def test_the_console_tells_the_story(start, tmp_path, capsys):
    runs.run(start, tmp_path, drawn=True, num_steps=1)
    out = capsys.readouterr().out
    for words in ("held-out accuracy before training", "step 1/1", "after 1 steps", "curves.png", "checkpoints"):
        assert words in out


# ---------------------------------------------------------------- compiled once


def test_nothing_compiles_after_the_first_steps(straight):
    """Replayed and reformulated prompts first come in the second step; after that there is nothing new to compile."""
    counts = {int(step): names for step, names in json.loads((straight / "compiled.json").read_text()).items()}
    late = counts[NUM_STEPS][len(counts[2]) :]
    assert not late, f"compiled after step 2: {late}"
    # Two buckets, hence two programs of each kind for prompts and slots; student and teacher share them.
    expected = {
        "update": 1,
        "add_gradient": 1,
        "zero_sums": 1,
        "logprobs": 1,
        "encode": 1,
        "prefill": 2,
        "fill": 2,
        "decode": 2,
        "empty": 2,
    }
    assert {name: counts[NUM_STEPS].count(f"jit({name})") for name in expected} == expected
    assert counts[NUM_STEPS].count("jit(_row_keys)") <= 1


# ---------------------------------------------------------------- methods


@pytest.fixture(scope="module")
def by_method(start, tmp_path_factory):
    def train(method: str):
        # A teacher that is not needed does not have to exist.
        changes: dict[str, Any] = {} if METHODS[method].helps else {"teacher__path": "no/such/teacher"}
        workdir = tmp_path_factory.mktemp(method)
        return runs.run(start, workdir, method, num_steps=3, log__tensorboard=False, **changes)

    return {method: train(method) for method in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_adds_what_its_row_says(by_method, name):
    method, workdir = METHODS[name], by_method[name]
    rows, samples = runs.metrics(workdir)[1:], runs.samples(workdir)
    kinds = {"plain", *method.helps}
    if method.uses_replay:
        kinds.add("replay")
    assert {sample["kind"] for sample in samples} == kinds
    for row in rows:
        assert all((row.get(key) is not None) == method.uses_replay for key in REPLAY_COUNTS)
        for kind in ("bcq", "ncq"):
            assert kind in method.helps or row[f"zppo/{kind}_groups"] == 0


def test_all_methods_begin_with_the_same_rollouts(by_method):
    """They differ in their additions, not in their random draws."""

    def first(workdir) -> list:
        keys = ("uid", "prompt", "responses", "rewards")
        samples = [one for one in runs.samples(workdir) if one["step"] == 1 and one["kind"] == "plain"]
        return [[one[key] for key in keys] for one in samples]

    assert all(first(workdir) == first(by_method["zppo"]) for workdir in by_method.values())


# ---------------------------------------------------------------- the unexpected


def test_a_prompt_that_no_bucket_holds_is_left_out_and_counted(start, tmp_path):
    """In the paper's wording, BCQ and NCQ prompts of a tiny tokenizer are longer than the largest bucket."""
    runs.run(start, tmp_path, num_steps=2, prompt__template="paper", log__tensorboard=False)
    rows = runs.metrics(tmp_path)[1:]
    assert sum(row["zppo/too_long"] for row in rows) > 0
    assert all(row["zppo/bcq_groups"] == row["zppo/ncq_groups"] == 0 for row in rows)


def test_threads_that_compile_change_nothing(straight, start, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    runs.run(start, tmp_path, num_steps=2, log__tensorboard=False)
    assert runs.timeless(tmp_path)[:2] == runs.timeless(straight)[:2]
    whole = (straight / "samples.jsonl").read_bytes()
    assert whole.startswith((tmp_path / "samples.jsonl").read_bytes())


HOST_ONLY = """
import numpy as np
from zppo_jax.zppo import prompts
from zppo_jax.data.digits import DigitsSource
from zppo_jax.data.pipeline import open_stream
from zppo_jax.data.processing import PromptProcessing
from zppo_jax.data.reading import Reading
from zppo_jax.processor import Processor
from zppo_jax.rewards import Answer, ScoringPool
from zppo_jax.types import Group, Rollout
from zppo_jax.zppo import ReplayBuffer, reformulate, select

template, buffer, kinds = prompts.get_template("compact"), ReplayBuffer(10), set()
process = PromptProcessing(Processor.from_directory({start!r}), template)
source = DigitsSource("rules", "train", 16)
stream = open_stream(
    Reading(source, process), seed=0, questions_per_step=4, replay=buffer, num_replayed=1, num_threads=1
)

def answers(item, texts):
    question = item.prompt.question
    verdicts = scorer.score_many([Answer(text, question.answer, question.answer_type, "final") for text in texts])
    tokens = np.zeros(1, np.int32), np.zeros(1, np.float32)
    rollouts = zip(texts, verdicts)
    return tuple(Rollout(*tokens, "stop", text, v.correct, v.answer, str(v.status)) for text, v in rollouts)

with ScoringPool(1) as scorer:
    for step in (1, 2):
        batch = next(stream)
        items = batch.items
        kinds |= {{item.prompt.kind for item in items}}
        wrong = [f"<think>\\n</think>\\n\\\\boxed{{{{{{n}}}}}}" for n in range(4)]
        groups = [Group(item.prompt, item.features, answers(item, wrong)) for item in items]
        for group, item in zip(groups, items):
            right = answers(item, [f"</think>\\\\boxed{{{{{{item.prompt.question.answer}}}}}}"])
            assert right[0].correct
            made = reformulate(group, right, lambda one: one.text, template, 0, step)
            kinds |= {{item.prompt.kind for item in process.items_of(made)}}
        buffer.refresh(select.plain_accuracies([group.outcome() for group in groups]), step, 0.5)
stream.close()
assert kinds == {{"plain", "replay", "bcq", "ncq"}} and len(buffer) >= 7, (kinds, len(buffer))
print("done")
"""


def test_the_host_needs_no_device(start):
    """Data, rewards, buffer and reformulation on a machine whose accelerator is busy or absent."""
    script = HOST_ONLY.format(start=str(start))
    environment = os.environ | {"JAX_PLATFORMS": "nonexistent", "PYTHONPATH": str(runs.ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "done\n", result.stderr


def test_a_reward_of_ones_own_is_that_of_the_run(start, tmp_path):
    """Students' responses, replayed and helped ones too; a function that cannot be imported ends the run at once."""
    run = runs.run(start, tmp_path / "run", num_steps=1, reward__function="tests.rewards.own:even")
    for line in runs.samples(run):
        assert line["rewards"] == [float(len(text) % 2 == 0) for text in line["responses"]]
    with pytest.raises(ConfigError, match=r"reward\.function = 'tests\.rewards\.own:odd' cannot be imported"):
        runs.run(start / "none", tmp_path / "other", reward__function="tests.rewards.own:odd")
