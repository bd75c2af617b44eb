"""The parts of a run: models, data and programs, from its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from zppo_jax.actors.actor import Actor
from zppo_jax.actors.cohort import gather_cohort
from zppo_jax.actors.student import Student
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.compilation import Compiler
from zppo_jax.config import Config
from zppo_jax.data.pipeline import StepBatch, StepStream
from zppo_jax.data.processing import EncodedPrompt, PromptProcessing
from zppo_jax.errors import ConfigError
from zppo_jax.evaluate import Evaluator
from zppo_jax.judge import Judge
from zppo_jax.keys import RandomStream
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import vlm
from zppo_jax.parallel import HostCopy, Hosts
from zppo_jax.processor import Processor
from zppo_jax.rewards import FunctionPool, ScoringPool
from zppo_jax.rewards.scorer import Scorer
from zppo_jax.rollout.banned import banned_mask
from zppo_jax.run.timers import Phase
from zppo_jax.setup import checkpoints, engines, judging, questions
from zppo_jax.setup.devices import check_hosts
from zppo_jax.setup.learning import learner_of
from zppo_jax.setup.teachers import make_teaching
from zppo_jax.teacher.ahead import Ahead
from zppo_jax.teacher.helper import Helper
from zppo_jax.teacher.local import LocalTeacher
from zppo_jax.teacher.teaching import Teaching
from zppo_jax.types import Cohort, Prompt, prompt_uid
from zppo_jax.update.credit import CREDITS, Credit
from zppo_jax.update.learner import Learner
from zppo_jax.update.programs import State
from zppo_jax.zppo import ReplayBuffer, get_method, prompts, select
from zppo_jax.zppo.methods import Method


@dataclasses.dataclass(frozen=True)
class Components:
    """The parts of a run; the loop holds the student's state and the step.

    `limit` is the cap on reformulated prompts per step.
    """

    config: Config
    method: Method
    process: PromptProcessing
    student: Student
    evaluators: Sequence[Evaluator]
    teacher: Teaching | None
    helper: Helper
    credit: Credit
    learner: Learner
    stream: StepStream
    buffer: ReplayBuffer | None
    limit: int
    hosts: Hosts

    @property
    def judge(self) -> Judge | None:
        """The judge of all responses, if there is one."""
        return self.student.actor.judge

    def begin(self, step: int) -> None:
        """Begins a step, which includes its evaluation."""
        if self.judge is not None:
            self.judge.begin(step)
        if self.teacher is not None:
            self.teacher.begin(step)

    def ahead(self, batch: StepBatch) -> Ahead | None:
        """What follows the plain rollouts of a step and announces hard questions to the teacher; None if it answers
        none, or does not work beside the student."""
        if self.teacher is None or not self.method.asks_teacher or not self.teacher.works_beside:
            return None
        teacher, stream, others = self.teacher, self.random(batch.step, "teacher"), self.hosts.count - 1
        return Ahead(
            lambda items: teacher.ahead(items, stream),
            batch.items,
            self.student.group_size,
            self.config.zppo.threshold,
            None if self.helper.teacher_scope == "all_hard" else self.limit,
            self.random(batch.step, "pre_cap_ties"),
            num_elsewhere=others * len(batch.items),
        )

    def asked_metrics(self) -> dict[str, float]:
        """The metrics of judge and teacher of the step, of all hosts together, as far as there are any. Collective."""
        found: dict[str, float] = {} if self.judge is None else judging.metrics(self.judge, self.hosts)
        if self.teacher is not None:
            parts = self.hosts.gather(self.teacher.counts(), "the teacher's counts")
            self.teacher.name_hosts(parts)
            found |= {f"teacher/{name}": sum(part[name] for part in parts) for name in parts[0]}
        return found

    def random(self, step: int, purpose: str) -> RandomStream:
        """The random stream for a purpose in a step."""
        return RandomStream(self.config.seed, step, purpose)

    def learned_from(self, plain: Cohort, helped: Cohort, step: int, phase: Phase) -> Cohort:
        """The groups that the update learns from: the student's, or the teacher's on the same plain prompts, under
        their own uids."""
        if self.method.learns_from == "student":
            return plain + helped
        assert self.teacher is not None and isinstance(self.teacher.teacher, LocalTeacher)
        items = [EncodedPrompt(_for_teacher(group.prompt, step), group.features) for group in plain.groups]
        with phase("teacher"):
            groups = self.teacher.teacher.groups(items, self.random(step, "teacher"))
            return gather_cohort(groups, self.hosts, "the teacher's responses")

    def close(self) -> None:
        """Ends the workers of the data stream, of the scorer, of the judge and of the teacher."""
        self.stream.close()
        if self.teacher is not None:
            self.teacher.close()
        self.student.actor.scorer.close()
        if self.judge is not None:
            self.judge.close()


def _for_teacher(prompt: Prompt, step: int) -> Prompt:
    return dataclasses.replace(prompt, uid=prompt_uid(step, prompt.question.id, "teacher"), parent=prompt.uid)


def build(
    config: Config,
    student_directory: Path,
    teacher_directory: Path,
    compiler: Compiler,
    report: Callable[[str], None] | None = None,
    hosts: Hosts | None = None,
    sampler: Compiler | None = None,
    heartbeat: Heartbeat | None = None,
    folder: Path = Path(),
    say: Callable[[str], None] = print,
    teaching: Compiler | None = None,
) -> tuple[Components, State]:
    """Loads models and data and starts compiling, on the compiler's mesh; returns the parts and the student's state.

    `report` is called with the progress of a step's rollouts. With several hosts, `sampler` compiles for the devices of
    this host only, where everything but the update runs. `teaching` compiles for devices of the teacher's own, if it
    has some. `heartbeat` shows what is being loaded. A judge keeps its
    verdicts in `folder`, and tells the user with `say` if it fails.
    """
    hosts, sampler, heartbeat = hosts or Hosts(), sampler or compiler, heartbeat or Heartbeat()
    check_hosts(config, compiler.mesh, hosts)
    method = get_method(config.method)
    # Before the models: they take minutes to load.
    sources, scorer = questions.sources_of(config, heartbeat), _scorer(config)
    model, processor = checkpoints.load(config, "model.path", student_directory, compiler, heartbeat)
    process = PromptProcessing(processor, prompts.get_template(config.prompt.template))
    judge = judging.make_judge(config, teacher_directory, folder, say)
    student = _student(config, model, processor, sampler, hosts, compiler, report, scorer, judge)
    reference = None
    if method.reference:
        reference, _ = checkpoints.load(config, "teacher.path", teacher_directory, compiler, heartbeat)
    learner = learner_of(config, model.config, student.actor.engine, compiler, hosts, reference)
    state = learner.init(model.params)
    held_out = questions.held_out_of(config, sources, process, student.actor, hosts)
    shapes = student.actor.engine.shapes
    buckets = {shapes.bucket_of(item.features, item.prompt.uid) for piece in held_out.encoded() for item in piece}
    hosts.gather(True, "the loaded student")  # the next copy is collective: it would time out while another host loads
    engines.prepare_student(
        config, student.sampling_params(model.params), student.actor.engine, held_out.actor.engine, buckets
    )
    student.host_copy.release()
    learner.prepare(state)
    place = teaching or sampler
    teacher = make_teaching(config, teacher_directory, student.actor, place, heartbeat, hosts, folder, say)
    buffer = ReplayBuffer(config.replay.capacity, config.replay.refresh_position) if method.uses_replay else None
    components = Components(
        config=config,
        method=method,
        process=process,
        student=student,
        evaluators=[held_out],
        teacher=teacher,
        helper=_helper(config, method, teacher, process, student.actor, hosts),
        credit=CREDITS[method.credit](config),
        learner=learner,
        stream=questions.stream_of(config, sources, process, student.actor, buffer, hosts),
        buffer=buffer,
        limit=select.augmentation_limit(config.zppo.augmentation_fraction, config.rollout.questions_per_step),
        hosts=hosts,
    )
    return components, state


def _student(
    config: Config,
    model: qwen3_5.Model,
    processor: Processor,
    sampler: Compiler,
    hosts: Hosts,
    compiler: Compiler,
    report: Callable[[str], None] | None,
    scorer: Scorer,
    judge: Judge | None,
) -> Student:
    engine = engines.student_engine(config, model.config, banned_mask(model.config, processor), sampler, report)
    return Student(
        actor=Actor(engine, processor, scorer, judge),
        group_size=config.rollout.group_size,
        sampling=engines.training_sampling(config),
        hosts=hosts,
        host_copy=HostCopy(compiler.mesh, vlm.logical_axes(model.config)),
    )


def _scorer(config: Config) -> Scorer:
    pool = ScoringPool(max(config.reward.num_workers, 1), config.reward.timeout_seconds)
    return Scorer(pool, config.reward.region, _reward_function(config))


def _reward_function(config: Config) -> FunctionPool | None:
    """The pool of `reward.function`, whose function can be imported; None if the rules score. Raises ConfigError."""
    if not config.reward.function:
        return None
    try:
        pool = FunctionPool(config.reward.function, max(config.reward.num_workers, 1), config.reward.timeout_seconds)
        pool.check()
    except ValueError as error:
        raise ConfigError(
            f"reward.function = {error}; the module must be installed, in the folder of the command or on PYTHONPATH"
        ) from error
    return pool


def _helper(
    config: Config,
    method: Method,
    teacher: Teaching | None,
    process: PromptProcessing,
    student: Actor,
    hosts: Hosts,
) -> Helper:
    def fits(prompt: Prompt) -> bool:
        """Whether some bucket holds the prompt. Only its text is new: the images are those of a sampled prompt."""
        return student.engine.shapes.holds_tokens(process.num_tokens(prompt))

    return Helper(
        method=method,
        teacher=teacher,
        scorer=student.scorer,
        template=process.template,
        codec=student.processor,
        hosts=hosts,
        fits=fits,
        teacher_scope=config.teacher.scope,
        writes=config.teacher.compress.enabled,
        max_tokens=config.teacher.compress.max_tokens,
    )
