"""transformers' side of a comparison of sampling: `generate`, its torch code; benchmarks.rollout starts it."""

from __future__ import annotations

from typing import Any

from benchmarks import worker
from benchmarks.rollout_cases import CASES, CHECKED_TOKENS, Case


def prepare(case: Case, checkpoint: str) -> tuple[worker.Run, worker.Run, dict[str, Any]]:
    """Load and sample as users do: float32, cache, temperature 1 without truncation; no token ends a response."""
    import os

    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.set_verbosity_error()
    model: Any = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    vocab_size = model.config.get_text_config().vocab_size
    ids_BT = torch.from_numpy(case.token_ids(vocab_size))
    prompts = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "pad_token_id": 0, "use_cache": True}
    sampled = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": case.rollouts}

    def run() -> torch.Tensor:
        with torch.no_grad():
            tokens_BT = model.generate(**prompts, **sampled, max_new_tokens=case.new)
        made = tokens_BT[:, case.prompt :].numel()
        if made != case.tokens:
            raise RuntimeError(f"{case.name}: {made} tokens instead of {case.tokens}")
        return tokens_BT

    def check() -> list[float]:
        with torch.no_grad():
            greedy = model.generate(
                **prompts,
                do_sample=False,
                max_new_tokens=CHECKED_TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens_BT = greedy.sequences[:, case.prompt :]
        logprobs_BTV = torch.log_softmax(torch.stack(greedy.logits, dim=1), dim=-1)
        logprobs_BT = logprobs_BTV.gather(-1, tokens_BT[..., None])[..., 0]
        logprobs = [round(logprob, 5) for logprob in logprobs_BT.flatten().tolist()]
        return [case.tokens, *tokens_BT.flatten().tolist(), *logprobs]

    return run, check, {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}}


if __name__ == "__main__":
    worker.serve(CASES, prepare)
