"""From a configuration to the parts of a run: every value is used where it belongs, and a fault is one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import runs
from zppo_jax import parallel, setup
from zppo_jax.actors.actor import Actor
from zppo_jax.compilation import Compiler
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.errors import ConfigError
from zppo_jax.evaluate import HeldOut
from zppo_jax.keys import RandomStream
from zppo_jax.models.qwen3_5 import hf, sizes
from zppo_jax.parallel import Hosts
from zppo_jax.parallel import mesh as parallel_mesh
from zppo_jax.run.stop import StopRequested
from zppo_jax.run.timers import PhaseTimers
from zppo_jax.setup import fitting, teachers
from zppo_jax.setup.learning import transform_of
from zppo_jax.teacher.local import LocalTeacher
from zppo_jax.teacher.recording import Recording
from zppo_jax.teacher.replay import Recorder
from zppo_jax.types import Cohort, Group, Rollout
from zppo_jax.update.learner import Schedule
from zppo_jax.update.objective import OBJECTIVES, Clipped
from zppo_jax.update.rows import RowShapes
from zppo_jax.zppo import HELPS, METHODS


class Names:
    """Replaces a compiler: records the programs that would be compiled, and compiles nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.mesh = None

    def program(self, name: str, lower: Any, kind: str = "sequence", mesh: Any = None) -> None:
        del lower
        self.asked.append(name)


def local(parts: setup.Components) -> LocalTeacher:
    """The teacher in this process, beneath what keeps its texts."""
    assert parts.teacher is not None
    teacher = parts.teacher.teacher
    return cast(LocalTeacher, teacher.teacher if isinstance(teacher, Recorder) else teacher)


@pytest.fixture
def build(start, tmp_path):
    made: list[setup.Components] = []

    def make(method: str = "zppo", teacher: Path = start, **changes: Any):
        names = Names()
        config = runs.config(start, method, **changes)
        folder = tmp_path / f"host-{len(made)}"
        folder.mkdir(exist_ok=True)
        parts, state = setup.build(config, start, teacher, cast(Compiler, names), folder=folder)
        made.append(parts)
        return parts, state, names.asked

    yield make
    for parts in made:
        parts.close()


def test_what_only_sampling_needs_is_given_back(build):
    student = build()[0].student
    engine = student.actor.engine

    def fill() -> None:
        engine.kept.weights._made, engine.kept.features._held = (
            ("program", {}, "weights"),
            {"question": ("features", 0)},
        )
        student.host_copy._made = ({}, "a copy")

    def empty() -> bool:
        return engine.kept.weights._made is None and not engine.kept.features._held and student.host_copy._made is None

    fill()
    student.release()
    assert empty()
    with student.rollouts({}):
        fill()
        assert not empty()
    assert empty(), "at the end of the rollouts of a step"
    with pytest.raises(StopRequested), student.rollouts({}):
        fill()
        raise StopRequested
    assert empty(), "and of those that were given up"


def test_the_programs_of_a_run_are_known_before_it_begins(build):
    _, _, names = build()
    prompts = [
        name.format(length, length + 10)
        for length in (32, 192)
        for name in ("prefill of {0} tokens", "fill of {1} keys after {0} tokens", "decode over {1} keys")
    ]
    assert names == ["vision", "weights", *prompts, "zero gradient", "gradient", "update", "log-probabilities"]


def test_what_is_frozen_and_how_the_optimiser_rounds_come_from_the_configuration(build):
    _, state, _ = build(
        model__dtype="bfloat16",
        optimizer__freeze=("vision/**",),
        optimizer__state_dtype="bfloat16",
        optimizer__parameter_rounding="kahan",
    )
    floating = [leaf for leaf in jax.tree.leaves(state["optimizer"]) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    trained = len(jax.tree.leaves(state["params"]["text"]))
    assert len(floating) == 3 * trained and {leaf.dtype for leaf in floating} == {jnp.dtype("bfloat16")}
    with pytest.raises(ConfigError, match=r"optimizer.freeze = 'vison/\*\*' matches no parameter"):
        build(optimizer__freeze=("vison/**",))


def test_a_name_of_the_hub_will_do_for_every_part_of_a_checkpoint(build, start, monkeypatch):
    """Model, processor, and the processor of the compressor."""
    monkeypatch.setattr(hf, "resolve", lambda path: start if str(path) == "Owner/Name" else path)
    parts, _, _ = build(teacher=Path("Owner/Name"), teacher__compress__enabled=True)
    assert local(parts).writer is not None


def test_sizes_come_from_the_configuration(build):
    parts, state, _ = build()
    assert parts.limit == 2  # half of four questions
    assert parts.learner.schedule.num_minibatches == 2
    assert parts.stream._num_replayed == 1  # a quarter of four questions
    assert parts.learner.shapes == RowShapes(2, 288, 16, 2, 192, 16), "chunks of 16 hold a response of 10"
    shapes = parts.student.actor.engine.shapes
    assert (shapes.buckets, shapes.max_new_tokens) == ((32, 192), 10)
    assert shapes.patch_slots == 16  # four merged tokens of four patches
    assert parts.student.actor.engine.prompts_per_call == 2 and parts.student.actor.engine.num_slots == 8
    (evaluator,) = parts.evaluators
    assert isinstance(evaluator, HeldOut) and evaluator.every == 3
    asked = [item for piece in evaluator.encoded() for item in piece]
    assert all(item.prompt.uid.startswith("held-out/") for item in asked)
    held_out, new = ({item.prompt.question.id for item in items} for items in (asked, next(parts.stream).new))
    assert len(held_out) == 8 and len(new) == 4 and not held_out & new
    assert jax.tree.structure(state["params"]) == jax.tree.structure(parts.learner.init(state["params"])["params"])


def test_long_prompts_are_prefilled_by_fewer_at_once(build):
    """The slots hold two groups, and two prompts of 9,000 tokens would not make a device faster."""
    parts = build()[0]
    engine = parts.student.actor.engine
    for longest, prompts in ((8192, 2), (9000, 1), (40_000, 1)):
        shapes = dataclasses.replace(engine.shapes, buckets=(32, longest))
        made = setup.engine_of(parts.config, engine.config, engine.banned_V, engine.compiler, shapes, None)
        assert (made.num_slots, made.prompts_per_call) == (8, prompts), longest


def test_ids_that_no_prompt_may_hold_are_banned(build):
    parts, _, _ = build()
    banned, processor = parts.student.actor.engine.banned_V, parts.student.actor.processor
    assert banned[processor.image_token_id] and banned[processor.video_token_id]
    assert not banned[list(processor.stop_ids)].any() and not banned[processor.encode_text("7")].any()
    assert banned[processor.vocab_size :].all() and len(banned) > processor.vocab_size
    assert np.array_equal(banned, parts.learner.banned_V), "sampler and trainer alike"


def test_methods_without_reformulation_have_no_teacher_and_those_without_replay_no_buffer(build):
    for method, teacher, buffer in (("grpo", False, False), ("grpo_replay", False, True), ("zppo", True, True)):
        parts, _, _ = build(method)
        assert (parts.teacher is not None, parts.buffer is not None) == (teacher, buffer)


def test_a_teacher_of_the_same_shape_shares_the_programs(build):
    teacher = local(build()[0])
    parts = build()[0]
    engine, students = local(parts).actor.engine, parts.student.actor.engine
    assert (engine.name, engine.compiler) == (students.name, students.compiler), "the compiler knows programs by name"
    assert engine.kept is not students.kept, "another tower sees other features"
    assert teacher.writer is None and teacher.num_rollouts == 4


def test_the_compressor_reads_whole_responses_and_does_not_think(build):
    parts, _, _ = build(teacher__compress__enabled=True, teacher__compress__max_tokens=7)
    compressor = local(parts).writer
    assert compressor is not None
    assert compressor.engine.shapes.max_new_tokens == 7
    assert compressor.engine.shapes.buckets[-1] >= runs.SETTINGS["rollout.max_new_tokens"] + 512
    assert compressor.processor.response_prefix == "" and parts.student.actor.processor.response_prefix == "<think>\n"


def test_the_teacher_writes_what_a_prompt_cannot_do_without(build, monkeypatch):
    """Whether or not it shortens candidates: a text without a fallback must be written."""
    assert local(build()[0]).writer is None
    digest = dataclasses.replace(HELPS["ncq"].digest, fallback=None)
    monkeypatch.setitem(HELPS, "ncq", dataclasses.replace(HELPS["ncq"], digest=digest))
    assert local(build()[0]).writer is not None
    assert local(build("grpo_replay_bcq")[0]).writer is None


def test_who_learns_from_the_teacher_does_not_share_groups_with_it(build, monkeypatch):
    """Its groups have their own uids and name their author; a loss that divides by the sampler's probability is not for
    them."""
    row = dataclasses.replace(METHODS["grpo"], name="pupil", learns_from="teacher")
    monkeypatch.setitem(METHODS, "pupil", row)
    with pytest.raises(ValueError, match="method pupil: the objective clipped compares the student with itself"):
        build("pupil")
    monkeypatch.setitem(OBJECTIVES, "clipped", lambda config: Imitation(0.2, 0.28, 10.0))
    parts, _, _ = build("pupil")
    items = next(parts.stream).items
    plain = Cohort(groups := tuple(map(answered, items)), tuple(group.outcome() for group in groups))
    monkeypatch.setattr(Actor, "answer", lambda self, params, items, *settings: list(map(answered, items)))
    learned = parts.learned_from(plain, Cohort((), ()), 1, PhaseTimers())
    assert {group.author for group in learned.groups} == {"teacher"}
    assert [one.uid for one in learned.outcomes] == [f"1/{item.prompt.question.id}/teacher" for item in items]
    assert [group.prompt.parent for group in learned.groups] == [item.prompt.uid for item in items]


class Imitation(Clipped):
    """A loss that uses no log-probabilities of a sampler."""

    mismatch: ClassVar[Mapping[str, str]] = {}


def answered(item: EncodedPrompt) -> Group:
    tokens_T = np.zeros(1, np.int32)
    return Group(item.prompt, item.features, (Rollout(tokens_T, tokens_T * 0.0, "stop", "a", True, "a", "ok"),))


def test_a_teacher_that_works_beside_the_student_follows_its_rollouts(build, monkeypatch):
    """One that does not hears nothing: that would be work for nothing in every chunk."""
    parts, _, _ = build()
    batch = next(parts.stream)
    assert parts.ahead(batch) is None
    announced: list[Any] = []
    monkeypatch.setattr(LocalTeacher, "works_beside", True)
    monkeypatch.setattr(LocalTeacher, "ahead", lambda self, items, stream: announced.append((items, stream)))
    follow = parts.ahead(batch)
    wrong = Rollout(np.zeros(0, np.int32), np.zeros(0, np.float32), "stop", "", False, None, "ok")
    size = parts.student.group_size
    follow({(index, number): wrong for index in range(len(batch.items)) for number in range(size)})
    ((items, stream),) = announced
    assert len(items) == parts.limit == 2 and stream == parts.random(batch.step, "teacher")
    assert build("grpo_replay_ncq")[0].teacher is None and build("grpo")[0].ahead(batch) is None


def test_texts_of_another_teacher_are_kept_apart(build, start, tmp_path):
    """A run may be continued with another teacher."""
    folders = []
    for teacher in ("", str(start)):
        parts, _, _ = build(teacher__path=teacher, teacher__compress__enabled=True)
        recorder = cast(Recorder, parts.teacher and parts.teacher.teacher)
        folders.append(recorder.recording._folder)
    assert folders[0].parent.name == folders[1].parent.name == "teacher" and folders[0].name != folders[1].name


def test_each_host_takes_its_texts_of_a_recording(start, tmp_path):
    """Two hosts may have asked for the same text and got different ones."""
    config = runs.config(start, teacher__path=f"recorded:{tmp_path}")
    for host in range(2):
        made = Recording(tmp_path, teachers.about(config, "m"), host)
        made.add_text("ask", 1, f"from {host}")
        made.close()
    for host in range(2):
        teacher = teachers.recorded_teacher(config, Hosts(host, 2), print)
        assert teacher.write(["ask"], RandomStream(config.seed, 1, "write")) == [f"from {host}"]


def test_a_method_that_learns_from_the_teacher_needs_its_tokens(build, monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "grpo", dataclasses.replace(METHODS["grpo"], learns_from="teacher"))
    monkeypatch.setitem(OBJECTIVES, "clipped", lambda config: Imitation(0.2, 0.28, 10.0))
    with pytest.raises(ConfigError, match="method grpo learns from the teacher's tokens: it must be in this process"):
        build("grpo", teacher__record=str(tmp_path / "answers"))


def test_a_teacher_that_has_nothing_to_do_is_not_loaded(build, tmp_path):
    """Its directory need not exist: NCQ without summaries is the student's, and a cap of 0 leaves no prompt."""
    for method, changes in (("grpo_replay_ncq", {}), ("zppo", {"zppo__augmentation_fraction": 0.0})):
        parts, _, _ = build(method, tmp_path / "missing", teacher__compress__enabled=False, **changes)
        assert parts.teacher is None
    assert local(build("grpo_replay_ncq", teacher__compress__enabled=True)[0]).writer is not None


def test_a_teacher_that_fits_nowhere_is_refused_with_the_numbers_and_the_ways_out(build, start):
    """As if devices had reported so much free memory: a CPU reports none."""
    parts, _, _ = build()
    config, student = parts.config, parts.student.actor.engine
    needs = fitting.needed(config, student.config, student, student.compiler)
    total = sum(needs.values())
    weights = parallel.device_bytes(local(parts).params)
    assert needs["weights"] == weights and total > weights and all(needs.values())
    fitting.require_room(config, student.config, student, student.compiler, free=total)
    fitting.require_room(config, student.config, student, student.compiler)
    with pytest.raises(ConfigError) as caught:
        fitting.require_room(config, student.config, student, student.compiler, free=total - 1)
    said = str(caught.value)
    assert said.startswith("teacher.path = ") and "\n" not in said
    for words in (f"needs {total / 1e9:.3g} GB", f"{(total - 1) / 1e9:.3g} GB are left beside the student"):
        assert words in said, words
    for way in ("teacher.path=http://HOST:PORT/v1", "teacher.path=recorded:DIR", "teacher.devices=N"):
        assert way in said, way


@dataclasses.dataclass(frozen=True)
class Device:
    """A device of a host, as far as it is divided."""

    process_index: int
    number: int


def test_the_last_devices_of_each_host_are_the_teachers(start):
    """If a model in this process answers; every host must have some left."""
    devices = [Device(host, number) for host in (0, 1) for number in range(4)]
    run, taken = setup.divide(runs.config(start, teacher__devices=1), devices)
    assert taken == [Device(0, 3), Device(1, 3)] and sorted([*run, *taken], key=devices.index) == devices
    for method, changes in (("zppo", {"teacher__devices": 0}), ("grpo", {"teacher__devices": 1})):
        assert setup.divide(runs.config(start, method, **changes), devices) == (devices, [])
    with pytest.raises(ConfigError, match=r"teacher.devices = 4 leaves nothing .* has 4: lower it to 3 or less"):
        setup.divide(runs.config(start, teacher__devices=4), devices)
    with pytest.raises(ConfigError, match=r"teacher.devices = 1 leaves nothing .* has 1: set 0"):
        setup.divide(runs.config(start, teacher__devices=1), devices[:1])


@pytest.mark.parametrize(("num_devices", "expected"), [(1, (1, 1, 1)), (4, (1, 1, 4)), (6, (3, 1, 2)), (8, (2, 1, 4))])
def test_a_teacher_is_cut_over_as_many_devices_as_its_heads_allow(start, num_devices, expected):
    """27B has four key-value heads; the tensor axis of the default is 0."""
    chosen, heads = runs.config(start).teacher.mesh, sizes.get("27B").text.num_key_value_heads
    shape = parallel.decoding_shape(num_devices, heads, chosen.data, chosen.fsdp, chosen.tensor)
    assert parallel_mesh.mesh_shape(num_devices, *shape) == expected


def test_a_teacher_with_another_tokenizer_is_refused(build, start, tmp_path):
    other = shutil.copytree(start, tmp_path / "teacher")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"teacher.path='.*teacher' has another tokenizer") as caught:
        build(teacher=other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_directory_that_does_not_load_is_one_line(start, tmp_path, missing):
    broken = shutil.copytree(start, tmp_path / "model")
    (broken / missing).unlink()
    with pytest.raises(ConfigError, match=r"model.path = '.*model' does not load") as caught:
        setup.build(runs.config(start), broken, start, cast(Compiler, Names()))
    assert "\n" not in str(caught.value)


def test_warm_up_is_counted_in_steps(start):
    """Two steps of two updates each: the fourth update has three quarters of the rate, the fifth the full rate."""
    changes = {"optimizer__warmup_steps": 2, "optimizer__weight_decay": 0.0, "optimizer__grad_clip": 1e9}
    transform = transform_of(runs.config(start, **changes))
    params = {"x": jnp.zeros(1)}
    state, sizes = transform.init(params), []
    for _ in range(6):
        change, state = transform.update({"x": jnp.ones(1)}, state, params)
        sizes.append(-float(cast(Any, change)["x"][0]) / runs.SETTINGS["optimizer.learning_rate"])
    assert sizes == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1], rel=1e-4, abs=1e-6)


def test_a_method_may_make_one_update_of_the_whole_batch(start, monkeypatch):
    """Its row decides this, whatever the configuration says: the schedule, and with it the warm-up of the rate."""
    config = runs.config(start, optimizer__warmup_steps=2, optimizer__grad_clip=1e9, update__inner_epochs=3)
    assert setup.schedule_of(config) == Schedule(2, 3, "sampler")
    before = transform_of(config)
    monkeypatch.setitem(METHODS, "zppo", dataclasses.replace(METHODS["zppo"], whole_batch=True))
    assert setup.schedule_of(config) == Schedule(1, 1, "sampler") and transform_of(config) is not before


def test_a_reference_that_the_objective_does_not_look_at_is_refused(start, monkeypatch):
    monkeypatch.setitem(METHODS, "zppo", dataclasses.replace(METHODS["zppo"], reference=True))
    with pytest.raises(ValueError, match="method zppo: its objective, its row and its models disagree"):
        setup.build(runs.config(start), start, start, cast(Compiler, Names()))


def test_the_same_optimiser_is_the_same_object(start):
    """The compiled update is keyed by its identity: otherwise a second run in a process would trace again."""
    first: optax.GradientTransformation = transform_of(runs.config(start, num_steps=3))
    assert transform_of(runs.config(start)) is first
    assert transform_of(runs.config(start, optimizer__b2=0.9)) is not first
    decaying = [transform_of(runs.config(start, optimizer__schedule="linear", num_steps=n)) for n in (3, 6)]
    assert decaying[0] is not decaying[1]
