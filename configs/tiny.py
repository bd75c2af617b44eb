"""The main job: all of ZPPO on two CPU cores, on real images, in minutes.

    python -m zppo_jax.main --config=configs/tiny.py --workdir=runs/tiny

`:grpo`, `:grpo_replay`, `:grpo_both`, `:grpo_replay_bcq` and `:grpo_replay_ncq` after the file's name select another
method.

The differences from the paper (configs/paper.py), and the reasons:
- student and teacher of less than a million parameters, warm-started by supervision and shipped with the package, in
  float32: a random model never earns a reward, and a large one does not fit in minutes;
- embedded questions about scikit-learn's handwritten digits, 32 per step instead of 384, answers of at most 16 tokens;
- two updates per step instead of four: a mini-batch of a dozen groups holds two or three with any spread, and such
  gradients undo what the warm start taught (in pilots, four updates lost 10 points more on the taught operations);
- a template with fewer words (each costs a token), and pixel limits under which one merged vision token sees one digit;
- learning rate 4e-4, chosen on grpo_replay: 1e-6 moves nothing in a hundred steps of so small a model;
- an answer counts only after the last </think>, the stricter of the two rules;
- candidates are not compressed: they have one or two lines;
- held-out questions are answered greedily: one response per question, without the noise of sampling;
- a buffer small enough to evict;
and from configs/common.py: rows, slots and recomputation for two cores, checkpoints and evaluations for minutes.

Two CPU cores: about 3 minutes, including half a minute of compilation. README.md has the expected numbers.
"""

from __future__ import annotations

from configs import paper
from zppo_jax.config import ConfigTree


def get_config(method: str = "zppo") -> ConfigTree:
    config = paper.get_config(method)
    config.num_steps = 240
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.teacher.path = ""  # shipped with the package, like the student
    config.data.source = "digits"
    config.data.num_questions = 240 * 32  # a single pass, as in the paper
    config.prompt.template = "compact"
    config.prompt.min_pixels = 1024  # one digit, one merged vision token
    config.prompt.max_pixels = 4 * 1024  # four digits; `grid` questions need 9 * 1024
    config.prompt.buckets = (20, 64, 192)  # plain, BCQ, NCQ
    config.rollout.questions_per_step = 32
    config.rollout.max_new_tokens = 16
    config.rollout.slots = 64
    config.rollout.chunk = 8
    config.reward.region = "final"
    config.reward.num_workers = 1
    config.teacher.compress.enabled = False  # the fallback shows candidates whole
    config.replay.capacity = 512
    config.update.num_minibatches = 2
    config.update.row_tokens = 320  # two plain groups fill it
    config.update.prompts_per_row = 2
    config.update.rows_per_microbatch = 2
    config.optimizer.learning_rate = 4e-4
    config.optimizer.state_dtype = "float32"
    config.optimizer.parameter_rounding = "nearest"  # float32 loses no relevant change
    config.checkpoint.every = 20
    config.eval.every = 40
    config.eval.temperature = 0.0
    config.eval.top_p = 1.0
    config.eval.top_k = 0
    config.eval.presence_penalty = 0.0
    config.log.samples_max_megabytes = 16.0
    return config
