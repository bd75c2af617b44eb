"""From a configuration to everything a run needs. Nothing here decides anything: every value comes from the config."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from zppo_jax import parallel, prompts
from zppo_jax.actor import Actor
from zppo_jax.compilation import Compiler
from zppo_jax.config import Config, ConfigError
from zppo_jax.config.schema import MeshConfig, OptimizerConfig
from zppo_jax.data.digits import DigitsSource, Family
from zppo_jax.data.pipeline import Item, PromptProcessing, Shard, StepStream, open_stream
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import hf, vlm
from zppo_jax.models.qwen3_5.layers import Remat
from zppo_jax.ops.gated_delta import longest_chunk
from zppo_jax.parallel import Hosts, OwnCopy
from zppo_jax.processor import Processor
from zppo_jax.prompts import Template
from zppo_jax.rewards import ScoringPool
from zppo_jax.rollout import memory
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.generate import banned_mask
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.rollout.statistics import Statistics
from zppo_jax.rollout.vision import VisionFeatures
from zppo_jax.rollout.weights import HeldWeights
from zppo_jax.teacher import LocalTeacher, Teacher
from zppo_jax.update import optimizer, rows
from zppo_jax.update.learner import Learner, Settings
from zppo_jax.update.step import Objective, State
from zppo_jax.zppo import ReplayBuffer, get_method, select
from zppo_jax.zppo.methods import Method


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run works with; the student's state and the step are the loop's own."""

    config: Config
    method: Method
    template: Template
    process: PromptProcessing
    student: Actor
    sampling: Sampling
    teacher: Teacher | None
    learner: Learner
    stream: StepStream
    buffer: ReplayBuffer | None
    held_out: list[Item]
    augmentation_limit: int
    hosts: Hosts
    own_copy: OwnCopy

    def sampled_from(self, state: State) -> dict[str, Any]:
        """The parameters that this host samples with: those of the state, or a copy on its own devices."""
        return self.own_copy.of(state["params"])

    def release(self) -> None:
        """Gives back the memory of what only sampling needs."""
        self.student.engine.held.release()
        self.own_copy.release()

    def close(self) -> None:
        """Ends the workers of the data stream and of the scorer."""
        self.stream.close()
        self.student.scorer.close()


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices (or those given) as `config.mesh` says; ConfigError when it does not use exactly these."""
    try:
        return parallel.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    except ValueError as error:
        raise ConfigError(f"mesh: {error}") from error


def find_hosts(config: Config) -> Hosts:
    """This process and the others; ConfigError when they have not been joined."""
    hosts = Hosts.all(config.watchdog.host_seconds)
    if hosts.count > 1 and not jax.distributed.is_initialized():
        raise ConfigError(f"this is one of {hosts.count} processes: add --distributed to the command on every host")
    return hosts


def own_mesh(config: Config, mesh: Mesh) -> Mesh:
    """The devices of this host, on which it samples: fsdp takes what the tensor axis leaves."""
    try:
        return parallel.own_mesh(mesh, 1, -1, mesh.shape["tensor"])
    except ValueError as error:
        raise ConfigError(f"mesh.tensor = {config.mesh.tensor}: {error}") from error


def decoding_mesh(compiler: Compiler, chosen: MeshConfig, where: str) -> Mesh | None:
    """The devices of the run as `chosen`, which is the section `where` of the config."""
    if compiler.mesh is None:
        return None
    try:
        return parallel.reshaped(compiler.mesh, chosen.data, chosen.fsdp, chosen.tensor)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def describe_mesh(mesh: Mesh, params: dict[str, Any], model: qwen3_5.Config, num_rows: int) -> Iterator[str]:
    """What a person should know about a run on several devices."""
    yield from parallel.describe(mesh, params, vlm.logical_axes(model))
    with parallel.use(mesh):
        shares = parallel.num_shards("batch")
    if num_rows % shares:
        yield f"update.rows_per_microbatch={num_rows} is not divided by {shares}: devices compute the same rows"


def build(
    config: Config,
    student_directory: Path,
    teacher_directory: Path,
    compiler: Compiler,
    report: Callable[[str], None] | None = None,
    hosts: Hosts | None = None,
    sampler: Compiler | None = None,
) -> tuple[Job, State]:
    """Load models and data and start compiling, all on the compiler's mesh. Returns the job and the student's state.

    `report` is told how far the rollouts of a step are. Over several hosts, `sampler` compiles for the devices of this
    one alone, where everything but the update runs.
    """
    hosts, sampler = hosts or Hosts(), sampler or compiler
    _check_hosts(config, compiler.mesh, hosts)
    method = get_method(config.method)
    model, processor = _checkpoint(config, "model.path", student_directory, compiler)
    template = prompts.get_template(config.prompt.template)
    process = PromptProcessing(processor, template)
    scorer = ScoringPool(max(config.reward.num_workers, 1), config.reward.timeout_seconds)
    mesh = decoding_mesh(sampler, config.rollout.mesh, "rollout.mesh")
    shapes, banned_V = shapes_of_prompts(config, model.config), banned_mask(model.config, processor)
    engine = engine_of(config, model.config, banned_V, sampler, shapes, mesh, report=report)
    student = Actor(engine, processor, scorer, config.reward.region)
    learner = learner_of(config, model.config, student.engine, compiler, hosts)
    state = learner.init(model.params)
    sampling = Sampling(config.rollout.temperature, config.rollout.top_k, config.rollout.top_p)
    own_copy = OwnCopy(sampler.mesh, vlm.logical_axes(model.config))
    student.engine.prepare(own_copy.of(model.params), (sampling, Sampling(config.eval.temperature)))
    own_copy.release()
    learner.prepare(state)
    buffer = ReplayBuffer(config.replay.capacity, config.replay.refresh_position) if method.uses_replay else None
    job = Job(
        config=config,
        method=method,
        template=template,
        process=process,
        student=student,
        sampling=sampling,
        teacher=_teacher(config, teacher_directory, student, sampler) if method.reformulations else None,
        learner=learner,
        stream=_stream(config, process, buffer, hosts),
        buffer=buffer,
        held_out=_held_out(config, process, hosts),
        augmentation_limit=select.augmentation_limit(
            config.zppo.augmentation_fraction, config.rollout.questions_per_step
        ),
        hosts=hosts,
        own_copy=own_copy,
    )
    return job, state


def _check_hosts(config: Config, mesh: Mesh | None, hosts: Hosts) -> None:
    """What several hosts ask of a configuration; ConfigError in one line."""
    if hosts.count == 1 or mesh is None:
        return
    questions, num_rows = config.rollout.questions_per_step, config.update.rows_per_microbatch
    with parallel.use(mesh):
        shares = parallel.num_shards("batch")
    if questions % hosts.count:
        raise ConfigError(
            f"rollout.questions_per_step = {questions} is not divided by the {hosts.count} hosts: set "
            f"{questions - questions % hosts.count + hosts.count}"
        )
    if num_rows % shares:
        raise ConfigError(
            f"update.rows_per_microbatch = {num_rows} is not divided by the {shares} parts of the devices of "
            f"{hosts.count} hosts: set {num_rows - num_rows % shares + shares}"
        )
    if config.warmstart.rebuild:
        raise ConfigError("warmstart.rebuild = True is for one process: build it once, then name model.path")
    try:
        parallel.own_shards(mesh)
    except ValueError as error:
        raise ConfigError(f"mesh.tensor = {config.mesh.tensor}: {error}") from error


def _checkpoint(config: Config, key: str, path: Path, compiler: Compiler) -> tuple[qwen3_5.Model, Processor]:
    """Model and processor of a Hugging Face directory; ConfigError in one line, naming the key, when it is none."""
    try:
        with parallel.use(compiler.mesh):  # over several hosts, not the one in use
            model = qwen3_5.load(path, config.model.dtype, compiler.mesh)
        return model, _processor(config, path, config.prompt.enable_thinking)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{key} = {str(path)!r} does not load ({reason[:300]}): name a directory with config.json, "
            "*.safetensors and tokenizer.json of a Qwen3.5 checkpoint"
        ) from error


def _processor(config: Config, path: Path, enable_thinking: bool) -> Processor:
    return Processor.from_directory(
        hf.resolve(path),
        min_pixels=config.prompt.min_pixels,
        max_pixels=config.prompt.max_pixels,
        enable_thinking=enable_thinking,
    )


def shapes_of_prompts(config: Config, model: qwen3_5.Config) -> Shapes:
    return Shapes(
        buckets=config.prompt.buckets,
        patch_slots=config.prompt.max_images * config.prompt.max_pixels // model.vision.patch_size**2,
        max_new_tokens=config.rollout.max_new_tokens,
    )


def engine_of(
    config: Config,
    model: qwen3_5.Config,
    banned_V: np.ndarray,
    compiler: Compiler,
    shapes: Shapes,
    mesh: Mesh | None,
    name: str = "",
    report: Callable[[str], None] | None = None,
) -> Engine:
    """As many slots as are asked for and as the memory for caches holds; prompts for a group each, and so many that the
    devices which prefill them have equal shares (else all would compute all)."""
    chosen, dtypes = config.rollout, (config.model.dtype, config.rollout.state_dtype)
    with parallel.use(mesh):
        num_slots = memory.plan(model, shapes, chosen.slots, 1e9 * chosen.cache_gigabytes, dtypes)
    with parallel.use(compiler.mesh):
        shares = parallel.num_shards("batch")
    prompts = math.ceil(max(num_slots // chosen.group_size, 1) / shares) * shares
    settings = (name, chosen.chunk, *dtypes)
    return Engine(model, shapes, num_slots, prompts, banned_V, compiler, *settings, report=report, mesh=mesh)


def learner_of(
    config: Config, model: qwen3_5.Config, engine: Engine, compiler: Compiler, hosts: Hosts | None = None
) -> Learner:
    update, sizes = config.update, engine.shapes
    settings = Settings(
        num_minibatches=update.num_minibatches,
        inner_epochs=update.inner_epochs,
        normalisation=config.advantage.normalisation,
        scope=config.advantage.scope,
        eps=config.advantage.eps,
    )
    remat = cast(Remat, config.model.remat)
    objective = Objective(update.clip_low, update.clip_high, update.dual_clip, config.rollout.temperature, remat)
    return Learner(
        model,
        rows.shapes(
            update.rows_per_microbatch,
            update.row_tokens,
            update.prompts_per_row,
            sizes.buckets[-1],
            sizes.max_new_tokens,
            sizes.patch_slots,
            longest_chunk(model.text.linear_key_head_dim),
        ),
        settings,
        objective,
        transform_of(config),
        engine.banned_V,
        compiler,
        config.optimizer.freeze,
        hosts or Hosts(),
    )


def transform_of(config: Config) -> optax.GradientTransformation:
    constant = config.optimizer.schedule == "constant"  # then the rate does not know the length of the run
    num_steps = 0 if constant else config.num_steps
    return _adamw(config.optimizer, num_steps, config.update.num_minibatches * config.update.inner_epochs)


@functools.cache
def _adamw(chosen: OptimizerConfig, num_steps: int, updates_per_step: int) -> optax.GradientTransformation:
    """Cached, because its identity is a part of the compiled update: a second run in a process traces nothing anew."""
    counts = (chosen.warmup_steps * updates_per_step, num_steps * updates_per_step)  # optax counts updates
    rate = optimizer.learning_rate(chosen.schedule, chosen.learning_rate, *counts)
    return optimizer.adamw(
        rate,
        chosen.b1,
        chosen.b2,
        chosen.eps,
        chosen.weight_decay,
        chosen.grad_clip,
        chosen.state_dtype,
        chosen.parameter_rounding,
    )


def teacher_engine(config: Config, model: qwen3_5.Config, banned_V: np.ndarray, student: Engine) -> Engine:
    """A teacher of the student's architecture, on the same mesh, shares its compiled programs."""
    mesh, compiler = decoding_mesh(student.compiler, config.teacher.mesh, "teacher.mesh"), student.compiler
    if (model, mesh) == (student.config, student.mesh):
        return dataclasses.replace(student, vision=VisionFeatures(), statistics=Statistics(), held=HeldWeights())
    return engine_of(config, model, banned_V, compiler, student.shapes, mesh, "teacher's ", student.report)


def compressor_engine(config: Config, teacher: Engine) -> Engine:
    """The teacher's with prompts that hold a whole response, and the few tokens of a candidate."""
    longest = max(*config.prompt.buckets, config.rollout.max_new_tokens + 512)
    tokens = config.teacher.compress.max_tokens
    shapes = dataclasses.replace(teacher.shapes, buckets=(longest,), max_new_tokens=tokens)
    names = (f"{teacher.name}compressor's ", teacher.report)
    return engine_of(config, teacher.config, teacher.banned_V, teacher.compiler, shapes, teacher.mesh, *names)


def _teacher(config: Config, directory: Path, student: Actor, compiler: Compiler) -> LocalTeacher:
    model, processor = _checkpoint(config, "teacher.path", directory, compiler)
    if processor.tokenizer.to_str() != student.processor.tokenizer.to_str():
        raise ConfigError(
            f"teacher.path={str(directory)!r} has another tokenizer than the student: both must be Qwen3.5 checkpoints"
        )
    engine = teacher_engine(config, model.config, banned_mask(model.config, processor), student.engine)
    compress = config.teacher.compress
    return LocalTeacher(
        params=model.params,
        actor=dataclasses.replace(student, engine=engine),
        num_rollouts=config.teacher.num_rollouts,
        temperature=config.teacher.temperature,
        top_p=config.teacher.top_p,
        max_tokens=compress.max_tokens,
        compressor=_compressor(config, processor, student, engine) if compress.enabled else None,
    )


def _compressor(config: Config, teacher: Processor, student: Actor, engine: Engine) -> Actor:
    """The teacher without thinking: the tokens of a candidate leave no room for it."""
    processor = teacher.configured(enable_thinking=False)
    return dataclasses.replace(student, engine=compressor_engine(config, engine), processor=processor)


def _stream(config: Config, process: PromptProcessing, buffer: ReplayBuffer | None, hosts: Hosts) -> StepStream:
    shard = Shard(hosts.index, hosts.count, lambda ids: hosts.gather(ids, "the new questions"))
    source = DigitsSource(cast(Family, config.data.family), "train", config.data.num_questions, config.seed)
    return open_stream(
        source,
        process,
        seed=config.seed,
        questions_per_step=config.rollout.questions_per_step,
        replay=buffer,
        num_replayed=select.replay_count(config.replay.fraction, config.rollout.questions_per_step),
        num_threads=1,
        worker_count=config.data.worker_count,
        shard=shard,
    )


def _held_out(config: Config, process: PromptProcessing, hosts: Hosts) -> list[Item]:
    source = DigitsSource(cast(Family, config.data.family), "test", config.eval.num_questions, config.seed)
    questions = [source[index] for index in hosts.own(range(len(source)))]
    return process.items_of([process.plain_prompt(question, f"held-out/{question.id}") for question in questions])
