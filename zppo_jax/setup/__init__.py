"""From a configuration to everything a run needs. Nothing here decides anything: every value comes from the config."""

from __future__ import annotations

from zppo_jax.setup.devices import check_hosts, decoding_mesh, describe_mesh, find_hosts, make_mesh, num_rows, own_mesh
from zppo_jax.setup.engines import (
    compressor_engine,
    engine_of,
    evaluation_engine,
    evaluation_sampling,
    prepare_student,
    shapes_of_prompts,
    teacher_engine,
    training_sampling,
)
from zppo_jax.setup.job import Job, build
from zppo_jax.setup.learning import learner_of, transform_of

__all__ = [
    "Job",
    "build",
    "check_hosts",
    "compressor_engine",
    "decoding_mesh",
    "describe_mesh",
    "engine_of",
    "evaluation_engine",
    "evaluation_sampling",
    "find_hosts",
    "learner_of",
    "make_mesh",
    "num_rows",
    "own_mesh",
    "prepare_student",
    "shapes_of_prompts",
    "teacher_engine",
    "training_sampling",
    "transform_of",
]
