"""The questions of a run: its sources, the stream of steps, and the held-out evaluation."""

from __future__ import annotations

import dataclasses
from typing import cast

from zppo_jax.actors.actor import Actor
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.config import Config
from zppo_jax.data.pipeline import Shard, StepStream, open_stream
from zppo_jax.data.processing import PromptProcessing
from zppo_jax.data.reading import BadRows, QuestionSource, Reading, Room
from zppo_jax.data.sources import Sources, open_sources
from zppo_jax.errors import ConfigError
from zppo_jax.evaluate import HeldOut
from zppo_jax.parallel import Hosts
from zppo_jax.rewards.answer_types import types_fault
from zppo_jax.setup import engines
from zppo_jax.zppo import ReplayBuffer, select


def sources_of(config: Config, heartbeat: Heartbeat) -> Sources:
    """Opens the sources. Raises ConfigError, also for golds that nothing can score."""
    with heartbeat.during("opening the questions") as progress:
        sources = open_sources(config, progress)
    for source in sources:
        fault = types_fault(source.answer_types, bool(config.judge.endpoint or config.reward.function))
        if fault is not None:
            raise ConfigError(fault)
    return sources


def stream_of(
    config: Config,
    sources: Sources,
    process: PromptProcessing,
    student: Actor,
    buffer: ReplayBuffer | None,
    hosts: Hosts,
) -> StepStream:
    """Opens the stream of training steps."""
    return open_stream(
        _reading(config, sources.training, process, student),
        seed=config.seed,
        questions_per_step=config.rollout.questions_per_step,
        replay=buffer,
        num_replayed=select.replay_count(config.replay.fraction, config.rollout.questions_per_step),
        num_threads=config.data.threads,
        worker_count=config.data.worker_count,
        shard=Shard(hosts.index, hosts.count, lambda ids: hosts.gather(ids, "the new questions")),
    )


def held_out_of(config: Config, sources: Sources, process: PromptProcessing, student: Actor, hosts: Hosts) -> HeldOut:
    """Makes the evaluation on this host's share of the held-out questions."""
    return HeldOut(
        actor=dataclasses.replace(student, engine=engines.evaluation_engine(config, student.engine)),
        reading=_reading(config, sources.held_out, process, student),
        numbers=hosts.share_of(range(len(sources.held_out))),
        sampling=engines.evaluation_sampling(config),
        every=config.eval.every,
        seed=config.seed,
        hosts=hosts,
    )


def _reading(config: Config, source: QuestionSource, process: PromptProcessing, student: Actor) -> Reading:
    shapes = student.engine.shapes
    room = Room(shapes.buckets[-1], shapes.patch_slots)
    return Reading(source, process, room, cast(BadRows, config.data.bad_rows))
