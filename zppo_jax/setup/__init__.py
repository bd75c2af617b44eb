"""Makes everything that a run needs from its configuration. Every value comes from the config; none is chosen here."""

from __future__ import annotations

from zppo_jax.setup.checkpoints import float8_kernels
from zppo_jax.setup.components import Components, build
from zppo_jax.setup.devices import (
    check_hosts,
    decoding_mesh,
    describe_mesh,
    divide,
    find_hosts,
    make_mesh,
    num_rows,
    num_teacher_devices,
    sampling_mesh,
    teacher_mesh,
)
from zppo_jax.setup.engines import (
    compressor_engine,
    engine_of,
    evaluation_engine,
    evaluation_sampling,
    prepare_student,
    shapes_of_prompts,
    student_engine,
    teacher_compiler,
    teacher_engine,
    teacher_sampling,
    training_sampling,
)
from zppo_jax.setup.fitting import placed_model, ways_out
from zppo_jax.setup.learning import learner_of, recipe_of, schedule_of
from zppo_jax.setup.opening import Opened, open_run

__all__ = [
    "Components",
    "Opened",
    "build",
    "check_hosts",
    "compressor_engine",
    "decoding_mesh",
    "describe_mesh",
    "divide",
    "engine_of",
    "evaluation_engine",
    "evaluation_sampling",
    "find_hosts",
    "float8_kernels",
    "learner_of",
    "make_mesh",
    "num_rows",
    "num_teacher_devices",
    "open_run",
    "placed_model",
    "prepare_student",
    "recipe_of",
    "sampling_mesh",
    "schedule_of",
    "shapes_of_prompts",
    "student_engine",
    "teacher_compiler",
    "teacher_engine",
    "teacher_mesh",
    "teacher_sampling",
    "training_sampling",
    "ways_out",
]
