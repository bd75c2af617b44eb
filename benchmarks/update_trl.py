"""TRL's side of a comparison of updates and of whole steps: its GRPOTrainer on transformers' torch code.

    pip install torch==2.13.0 trl==1.16.0     # in a separate environment, whose Python is --trl-python

The trainer's own loop runs, one step per turn, without records, evaluation and checkpoints. For updates its rollouts
are replaced by recorded ones.
"""

# pyright: reportMissingImports=false
# Its libraries are in a separate environment.

from __future__ import annotations

import re
import tempfile
from typing import Any

from benchmarks import update_cases, worker
from benchmarks.turns import Turns
from benchmarks.update_cases import CASES, CHECKED_UPDATES, Case

_NEVER = 2**31 - 1
"""An id that is never sampled."""


def load(checkpoint: str) -> Any:
    """Loads the language model alone, in float32; attention by torch's fused kernel, transformers' default."""
    import torch
    import transformers

    whole: Any = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    model = transformers.Qwen3_5ForCausalLM._from_config(whole.config.text_config, attn_implementation="sdpa")
    model.model.load_state_dict(whole.model.language_model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = None
    return model


def arguments(case: Case, directory: str) -> Any:
    """One update per step on all rollouts, no reference model; everything that only records is switched off."""
    import trl

    return trl.GRPOConfig(
        output_dir=directory,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_steps=1_000_000,
        per_device_train_batch_size=case.prompts * case.rollouts,
        gradient_accumulation_steps=1,
        num_generations=case.rollouts,
        max_completion_length=case.new,
        num_iterations=1,
        beta=0.0,
        loss_type="dapo",
        epsilon=update_cases.CLIP_LOW,
        epsilon_high=update_cases.CLIP_HIGH,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        generation_kwargs={"eos_token_id": None},
        learning_rate=update_cases.LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=update_cases.B1,
        adam_beta2=update_cases.B2,
        adam_epsilon=update_cases.EPS,
        weight_decay=0.0,
        max_grad_norm=update_cases.GRAD_CLIP,
        shuffle_dataset=False,
        dataloader_num_workers=0,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def recorded_batch(case: Case, vocab_size: int) -> dict[str, Any]:
    """The recorded rollouts in the form of the trainer's loss."""
    import torch

    recorded = case.recorded(vocab_size)
    prompts = torch.from_numpy(recorded.prompts_PS).repeat_interleave(case.rollouts, dim=0)
    completions = torch.from_numpy(recorded.responses_PGT).flatten(0, 1)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.from_numpy(recorded.advantages_PG).flatten(),
        "old_per_token_logps": torch.from_numpy(recorded.old_logprobs_PGT).flatten(0, 1),
        "num_items_in_batch": torch.tensor(case.tokens),
    }


def reward(completions: list[str], **others: Any) -> list[float]:
    """Whether the last box holds a 1."""
    del others
    boxes = (re.findall(r"\\boxed\{(\d)\}", completion) for completion in completions)
    return [float(bool(found) and found[-1] == "1") for found in boxes]


def make_trainer(case: Case, checkpoint: str, directory: str) -> Any:
    """Makes a GRPOTrainer that begins each step in its turn (`turns`), uses `rollouts` instead of its own if given, and
    keeps its results (`last`)."""
    import torch
    import transformers
    import trl
    from datasets import Dataset

    model = load(checkpoint)
    prompts_PS = case.token_ids(model.config.vocab_size).tolist()

    class Trainer(trl.GRPOTrainer):
        rollouts: dict[str, Any] | None = None
        last: tuple[Any, ...] = ()

        def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [prompts_PS[int(prompt)] for prompt in prompts], None, {}

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            return super()._generate_and_score_completions(inputs) if self.rollouts is None else dict(self.rollouts)

        def training_step(self, *arguments: Any) -> torch.Tensor:
            loss = super().training_step(*arguments)
            self.last = (loss, self._metrics["train"]["clip_ratio/region_mean"][-1])
            return loss

        def _clip_grad_norm(self, model: Any) -> Any:
            norm = super()._clip_grad_norm(model)
            self.last = (self.last[0], norm, self.last[1])
            return norm

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=f"{checkpoint}/tokenizer.json", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    rows = Dataset.from_dict({"prompt": [str(number) for number in range(case.prompts)]})
    trainer = Trainer(model, reward, arguments(case, directory), rows, processing_class=tokenizer)
    trainer.eos_token_ids = [_NEVER]
    trainer.turns = Turns(trainer.train)

    class Begins(transformers.TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            trainer.turns.begin()

    trainer.add_callback(Begins())
    return trainer


def prepare(case: Case, checkpoint: str) -> tuple[worker.Run, worker.Run, dict[str, Any]]:
    """Prepares TRL's side; the sides must agree on the first updates, on the recorded rollouts."""
    import os

    import torch
    import transformers
    import trl

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.set_verbosity_error()
    trainer = make_trainer(case, checkpoint, tempfile.mkdtemp())
    trainer.rollouts = recorded_batch(case, trainer.model.config.vocab_size)
    trainer.turns.start()
    checked: list[float] = []
    for _ in range(CHECKED_UPDATES):
        trainer.turns.step()
        checked += [float(value) for value in trainer.last]
    if case.kind == "step":
        trainer.rollouts = None

    def run() -> None:
        before = trainer.state.num_input_tokens_seen
        trainer.turns.step()
        made = trainer.state.num_input_tokens_seen - before
        expected = case.tokens + case.prompts * case.rollouts * case.prompt
        if case.kind == "step" and made != expected:
            raise RuntimeError(f"{case.name}: {made} tokens of prompts and responses instead of {expected}")

    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    return run, lambda: checked, {"versions": versions}


if __name__ == "__main__":
    worker.serve(CASES, prepare)
