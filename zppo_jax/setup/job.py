"""A run: models, data and programs, as its configuration says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from zppo_jax import parallel, prompts
from zppo_jax.actors.actor import Actor
from zppo_jax.actors.local_teacher import LocalTeacher, Teacher
from zppo_jax.compilation import Compiler
from zppo_jax.config import Config
from zppo_jax.data.digits import DigitsSource, Family
from zppo_jax.data.pipeline import Item, PromptProcessing, Shard, StepStream, open_stream
from zppo_jax.errors import ConfigError
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import config_keys, hf, vlm
from zppo_jax.parallel import Hosts, OwnCopy
from zppo_jax.processor import Processor
from zppo_jax.prompts import Template
from zppo_jax.rewards import ScoringPool
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.generate import banned_mask
from zppo_jax.run.heartbeat import Heartbeat
from zppo_jax.setup import engines
from zppo_jax.setup.devices import check_hosts, decoding_mesh
from zppo_jax.setup.learning import learner_of
from zppo_jax.update.learner import Learner
from zppo_jax.update.step import State
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
    evaluator: Actor
    evaluation: Sampling
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
        self.student.engine.vision.release()
        self.own_copy.release()

    def close(self) -> None:
        """Ends the workers of the data stream and of the scorer."""
        self.stream.close()
        self.student.scorer.close()


def build(
    config: Config,
    student_directory: Path,
    teacher_directory: Path,
    compiler: Compiler,
    report: Callable[[str], None] | None = None,
    hosts: Hosts | None = None,
    sampler: Compiler | None = None,
    heartbeat: Heartbeat | None = None,
) -> tuple[Job, State]:
    """Load models and data and start compiling, all on the compiler's mesh. Returns the job and the student's state.

    `report` is told how far the rollouts of a step are. Over several hosts, `sampler` compiles for the devices of this
    one alone, where everything but the update runs. `heartbeat` shows what is being loaded.
    """
    hosts, sampler, heartbeat = hosts or Hosts(), sampler or compiler, heartbeat or Heartbeat()
    check_hosts(config, compiler.mesh, hosts)
    method = get_method(config.method)
    model, processor = _checkpoint(config, "model.path", student_directory, compiler, heartbeat)
    template = prompts.get_template(config.prompt.template)
    process = PromptProcessing(processor, template)
    scorer = ScoringPool(max(config.reward.num_workers, 1), config.reward.timeout_seconds)
    mesh = decoding_mesh(sampler, config.rollout.mesh, "rollout.mesh")
    shapes, banned_V = engines.shapes_of_prompts(config, model.config), banned_mask(model.config, processor)
    engine = engines.engine_of(config, model.config, banned_V, sampler, shapes, mesh, report=report)
    student = Actor(engine, processor, scorer, config.reward.region)
    learner = learner_of(config, model.config, student.engine, compiler, hosts)
    state = learner.init(model.params)
    evaluator = dataclasses.replace(student, engine=engines.evaluation_engine(config, engine))
    held_out = _held_out(config, process, hosts)
    hosts.gather(True, "the loaded student")  # none waits for long in the copying, which all do together
    own_copy = OwnCopy(compiler.mesh, vlm.logical_axes(model.config))
    buckets = {shapes.bucket_of(item.features, item.prompt.uid) for item in held_out}
    engines.prepare_student(config, own_copy.of(model.params), engine, evaluator.engine, buckets)
    own_copy.release()
    learner.prepare(state)
    buffer = ReplayBuffer(config.replay.capacity, config.replay.refresh_position) if method.uses_replay else None
    job = Job(
        config=config,
        method=method,
        template=template,
        process=process,
        student=student,
        sampling=engines.training_sampling(config),
        evaluator=evaluator,
        evaluation=engines.evaluation_sampling(config),
        teacher=_teacher(config, teacher_directory, student, sampler, heartbeat) if method.reformulations else None,
        learner=learner,
        stream=_stream(config, process, buffer, hosts),
        buffer=buffer,
        held_out=held_out,
        augmentation_limit=select.augmentation_limit(
            config.zppo.augmentation_fraction, config.rollout.questions_per_step
        ),
        hosts=hosts,
        own_copy=own_copy,
    )
    return job, state


def _checkpoint(
    config: Config, key: str, path: Path, compiler: Compiler, heartbeat: Heartbeat
) -> tuple[qwen3_5.Model, Processor]:
    """Model and processor of a Hugging Face directory; ConfigError in one line, naming the key, when it is none."""
    try:
        # The compiler's mesh: over several hosts, not the one in use.
        with parallel.use(compiler.mesh), heartbeat.during(f"loading {key}={path}") as report:
            model = qwen3_5.load(path, config.model.dtype, compiler.mesh, report)
        return model, _processor(config, path, config.prompt.enable_thinking)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{key} = {str(path)!r} does not load ({reason[:300]}): name a directory with config.json, "
            "*.safetensors and tokenizer.json of a Qwen3.5 checkpoint"
        ) from error


def _processor(config: Config, path: Path, enable_thinking: bool) -> Processor:
    directory = hf.resolve(path)
    processor = Processor.from_directory(
        directory,
        min_pixels=config.prompt.min_pixels,
        max_pixels=config.prompt.max_pixels,
        enable_thinking=enable_thinking,
    )
    config_keys.check_processor(configs.from_directory(directory).vision, processor.config)
    return processor


def _teacher(config: Config, directory: Path, student: Actor, compiler: Compiler, heartbeat: Heartbeat) -> LocalTeacher:
    model, processor = _checkpoint(config, "teacher.path", directory, compiler, heartbeat)
    if processor.tokenizer.to_str() != student.processor.tokenizer.to_str():
        raise ConfigError(
            f"teacher.path={str(directory)!r} has another tokenizer than the student: both must be Qwen3.5 checkpoints"
        )
    engine = engines.teacher_engine(config, model.config, banned_mask(model.config, processor), student.engine)
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
    return dataclasses.replace(student, engine=engines.compressor_engine(config, engine), processor=processor)


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
