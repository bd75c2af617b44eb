"""The teacher of a configuration: in this process, served or recorded, and what is kept of its exchanges."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zppo_jax import compilation, parallel
from zppo_jax.actors.actor import Actor
from zppo_jax.actors.local_judge import LocalJudge
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.compilation import Compiler
from zppo_jax.config import Config
from zppo_jax.config.combinations import TEACHER
from zppo_jax.config.teacher import RECORDED, teacher_place
from zppo_jax.errors import ConfigError
from zppo_jax.judge import Case, judge_text
from zppo_jax.keys import RandomStream
from zppo_jax.models.qwen3_5 import hf
from zppo_jax.parallel import Hosts
from zppo_jax.processor import Processor
from zppo_jax.rewards import ScoringPool
from zppo_jax.rewards.scorer import Scorer
from zppo_jax.rollout.banned import banned_mask
from zppo_jax.rollout.engine import Engine
from zppo_jax.setup import engines
from zppo_jax.setup.checkpoints import float8_kernels, load, read_architecture
from zppo_jax.setup.devices import make_mesh
from zppo_jax.setup.fitting import require_room
from zppo_jax.setup.served import served_teacher
from zppo_jax.teacher.batches import Batches
from zppo_jax.teacher.local import LocalTeacher
from zppo_jax.teacher.recording import Recording
from zppo_jax.teacher.replay import RecordedTeacher, Recorder
from zppo_jax.teacher.teacher import Teacher
from zppo_jax.teacher.teaching import Teaching
from zppo_jax.zppo import get_method

TEXTS_FOLDER = "teacher"
"""The folder of a host in which texts of the teacher are kept, if teacher.record names no other."""


def make_teaching(
    config: Config,
    directory: Path,
    student: Actor,
    compiler: Compiler,
    heartbeat: Heartbeat,
    hosts: Hosts,
    folder: Path,
    say: Callable[[str], None],
) -> Teaching | None:
    """Makes the teacher that the method needs, if it needs one. `directory` holds the weights of one in this process,
    which works on the compiler's devices; what it writes is kept in `folder`, unless teacher.record names another."""
    if not get_method(config.method).needs_teacher(config):
        return None
    place, method = teacher_place(config), get_method(config.method)
    if method.learns_from == "teacher" and (place != "local" or config.teacher.record):
        raise ConfigError(
            f"method {method.name} learns from the teacher's tokens: it must be in this process, and not recorded"
        )
    if place == "recorded":
        teacher: Teacher = recorded_teacher(config, hosts, say)
    elif place == "served":
        made = served_teacher(config, student.processor, student.engine.report, say)
        teacher = _recorder(config, made, hosts, folder, say)
    else:
        made = local_teacher(config, directory, student, compiler, heartbeat)
        teacher = _recorder(config, made, hosts, folder, say)
    return Teaching(teacher, student.scoring, say, student.engine.report)


def recorded_teacher(config: Config, hosts: Hosts, say: Callable[[str], None]) -> RecordedTeacher:
    """The recording that teacher.path names. Raises ConfigError."""
    recording = Recording(Path(config.teacher.path.removeprefix(RECORDED)), host=hosts.index, report=say)
    differing = {
        name: (value, found)
        for name, value in sampling_of(config).items()
        if (found := recording.about["sampling"].get(name)) != value
    }
    for name, (wanted, found) in differing.items():
        say(f"!! {config.teacher.path} was recorded with {name}={found}, and this run has {wanted}")
    return RecordedTeacher(recording, config.teacher.num_rollouts, config.seed)


def sampling_of(config: Config) -> dict[str, Any]:
    """How the teacher is asked, for a recording."""
    teacher = config.teacher
    return {
        "num_rollouts": teacher.num_rollouts,
        "temperature": teacher.temperature,
        "top_p": teacher.top_p,
        "max_new_tokens": config.rollout.max_new_tokens,
        "enable_thinking": config.prompt.enable_thinking,
        "text_max_tokens": teacher.compress.max_tokens,
    }


def about(config: Config, model: str) -> dict[str, Any]:
    """What the exchanges of a run are about."""
    return {"model": model, "seed": config.seed, "sampling": sampling_of(config)}


@contextlib.contextmanager
def alone(
    config: Config, directory: Path, processor: Processor, heartbeat: Heartbeat, say: Callable[[str], None]
) -> Iterator[Teacher]:
    """The teacher of a configuration on this machine's devices, or behind a network, without a run; `processor` is the
    student's. Raises ConfigError."""
    if teacher_place(config) == "recorded":
        raise ConfigError(f"teacher.path = {config.teacher.path!r} is a recording already: name the teacher to ask")
    if teacher_place(config) == "served":
        with contextlib.closing(served_teacher(config, processor, heartbeat.detail, say)) as served:
            yield served
        return
    compilation.use_cache()
    config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, devices=0))  # no student samples
    mesh = make_mesh(config)
    announce = lambda program: heartbeat.during(f"compiling {program}")  # noqa: E731
    with parallel.use(mesh), compilation.compiler(announce, mesh) as compiler, ScoringPool(1, 1.0) as pool:
        model = read_architecture("teacher.path", directory)
        engine = engines.student_engine(config, model, banned_mask(model, processor), compiler, heartbeat.detail)
        unused = Scorer(pool, config.reward.region)  # no answer is scored
        yield local_teacher(config, directory, Actor(engine, processor, unused), compiler, heartbeat)


def _recorder(config: Config, teacher: Teacher, hosts: Hosts, folder: Path, say: Callable[[str], None]) -> Teacher:
    """The teacher with a recording: of all exchanges if teacher.record names a folder, of its texts if it writes."""
    whole = bool(config.teacher.record)
    if not whole and not get_method(config.method).teacher_writes(config):
        return teacher
    # Texts of another model, or of another length, are kept apart: a run may be continued with another teacher.
    kind = f"{RandomStream(purpose=teacher.name).hash(str(config.teacher.compress.max_tokens)):032x}"
    where = Path(config.teacher.record) if whole else folder / TEXTS_FOLDER / kind
    recording = Recording(where, about(config, teacher.name), hosts.index, say)
    return Recorder(teacher, recording, answers=whole)


def local_teacher(
    config: Config, directory: Path, student: Actor, compiler: Compiler, heartbeat: Heartbeat
) -> LocalTeacher:
    """The teacher in this process, on the compiler's devices: the student's or others. It is also the judge if the
    configuration says so."""
    architecture = read_architecture("teacher.path", directory)
    float8 = float8_kernels(config, hf.resolve(directory), architecture)
    require_room(config, architecture, student.engine, compiler, float8)
    place = engines.teacher_compiler(config, compiler, architecture, bool(float8))
    weights = "as_stored" if float8 else "dequantised"
    model, processor = load(config, "teacher.path", directory, place, heartbeat, weights)
    if processor.tokenizer.to_str() != student.processor.tokenizer.to_str():
        raise ConfigError(
            f"teacher.path={str(directory)!r} has another tokenizer than the student: both must be Qwen3.5 checkpoints"
        )
    banned_V = banned_mask(model.config, processor)
    engine = engines.teacher_engine(config, model.config, banned_V, student.engine, compiler, bool(float8))
    make_room = student.engine.kept.weights.release if engine.lane is None else None
    if student.judge is not None and config.judge.endpoint == TEACHER:
        student.judge.asker = LocalJudge(model.params, _judge_actor(config, processor, student, engine), make_room)
    writes = get_method(config.method).teacher_writes(config)
    return LocalTeacher(
        name=config.teacher.path or directory.name,
        params=model.params,
        actor=dataclasses.replace(student, engine=engine),
        num_rollouts=config.teacher.num_rollouts,
        sampling=engines.teacher_sampling(config),
        writer=_writer(config, processor, student, engine) if writes else None,
        batches=_batches(config, engine),
        make_room=make_room,
    )


def _batches(config: Config, engine: Engine) -> Batches | None:
    """The batches of a teacher with separate devices: as many prompts as its slots hold responses to."""
    return engine.lane and Batches(engine.lane, max(engine.num_slots // config.teacher.num_rollouts, 1))


def _writer(config: Config, teacher: Processor, student: Actor, engine: Engine) -> Actor:
    """The teacher without thinking, as a writer: the tokens of a candidate leave no room for thinking."""
    processor = teacher.configured(enable_thinking=False)
    return dataclasses.replace(student, engine=engines.compressor_engine(config, engine), processor=processor)


def _judge_actor(config: Config, teacher: Processor, student: Actor, engine: Engine) -> Actor:
    """The teacher as a judge: without thinking, as its tokens leave no room for that."""
    processor = teacher.configured(enable_thinking=False)
    frame = processor.num_tokens(judge_text(Case("", "", "")))
    return Actor(engines.judge_engine(config, engine, frame), processor, student.scorer)
