"""The keys without a value in the paper: machine, columns of the data, checkpoints, logs.

configs/paper.py adds the others; a configuration starts from that file or from one that does, never from this one.
`python -m zppo_jax.main --help` prints the meaning and the allowed values of each key.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from zppo_jax.config import ConfigTree


def get_config(method: str = "zppo") -> ConfigTree:
    """Makes all sections, with the keys that have no value in the paper."""
    config = ConfigTree()

    config.seed = 0
    config.method = method

    config.mesh = ConfigDict()

    config.model = ConfigDict()
    config.model.path = ""  # a Hugging Face directory or hub id; empty: the warm start shipped with the package
    config.model.remat = "block"

    config.teacher = ConfigDict()
    config.teacher.record = ""
    config.teacher.model = ""
    config.teacher.concurrency = 32
    config.teacher.timeout_seconds = 600.0
    config.teacher.retries = 3
    config.teacher.deadline_seconds = 900.0
    config.teacher.weights = "as_stored"
    config.teacher.devices = 0  # it samples on the run's devices, when the student does not
    config.teacher.mesh = ConfigDict()  # the mesh on which it decodes: a copy over as many devices as its heads allow
    config.teacher.mesh.data = -1
    config.teacher.mesh.fsdp = 1
    config.teacher.mesh.tensor = 0
    config.teacher.compress = ConfigDict()

    config.warmstart = ConfigDict()
    config.warmstart.rebuild = False

    config.data = ConfigDict()
    config.data.split = "train"
    config.data.held_out = ""
    config.data.held_out_split = "test"
    config.data.family = "rules"
    config.data.answer_type = "math"
    config.data.allow_outside = False
    config.data.bad_rows = "refuse"
    config.data.threads = 2
    config.data.worker_count = 0
    config.data.columns = ConfigDict()
    config.data.columns.id = "id"
    config.data.columns.question = "question"
    config.data.columns.answer = "answer"
    config.data.columns.images = "images"
    config.data.columns.videos = "videos"
    config.data.columns.answer_type = "answer_type"
    config.data.columns.choices = "choices"
    config.data.columns.tolerance = "tolerance"
    config.data.columns.options = "options"
    config.data.columns.level = "level"

    config.prompt = ConfigDict()
    config.prompt.max_images = 1

    config.rollout = ConfigDict()
    config.rollout.slots = 256
    config.rollout.chunk = 64
    config.rollout.cache_gigabytes = 40.0
    config.rollout.state_dtype = "float32"
    config.rollout.mesh = ConfigDict()  # the mesh on which the student decodes: rows are cut, weights are whole
    config.rollout.mesh.data = -1
    config.rollout.mesh.fsdp = 1
    config.rollout.mesh.tensor = 1

    config.reward = ConfigDict()
    config.reward.function = ""  # the rules of the answer types
    config.reward.timeout_seconds = 5.0
    config.reward.num_workers = 4

    config.judge = ConfigDict()
    config.judge.endpoint = ""  # nobody: a run with free-form golds is refused
    config.judge.model = ""
    config.judge.thinking = "off"
    config.judge.concurrency = 32
    config.judge.timeout_seconds = 60.0
    config.judge.retries = 3
    config.judge.deadline_seconds = 300.0

    config.replay = ConfigDict()

    config.zppo = ConfigDict()

    config.advantage = ConfigDict()

    config.update = ConfigDict()
    config.update.row_tokens = 0  # the paper: a micro-batch of 4 rollouts per device
    config.update.prompts_per_row = 4
    config.update.rows_per_microbatch = 8  # one per device, for eight devices

    config.optimizer = ConfigDict()

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 10
    config.checkpoint.keep = 2
    config.checkpoint.keep_best = 1

    config.eval = ConfigDict()
    config.eval.every = 20
    config.eval.num_questions = 512

    config.log = ConfigDict()
    config.log.samples_max_megabytes = 64.0
    config.log.samples_keep = 4
    config.log.tensorboard = True

    config.profile = ConfigDict()
    config.profile.step = 0

    config.watchdog = ConfigDict()
    config.watchdog.max_skipped = 8  # two steps of four updates
    config.watchdog.host_seconds = 1800.0

    return config
