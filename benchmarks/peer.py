"""transformers' side of a comparison, its torch code (no fla, no causal-conv1d); benchmarks.model starts it."""

from __future__ import annotations

from typing import Any

from benchmarks import worker
from benchmarks.cases import CASES, Case


def prepare(case: Case, checkpoint: str) -> tuple[worker.Run, worker.Run, dict[str, Any]]:
    """Load as users do, in float32; the loss is transformers'."""
    import os

    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.set_verbosity_error()
    model = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    vocab_size = model.config.get_text_config().vocab_size
    ids_BT = torch.from_numpy(case.token_ids(vocab_size))

    def training() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        loss.backward()
        return loss

    def prefill() -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids_BT, logits_to_keep=1, use_cache=True).logits

    def check() -> list[float]:
        if case.kind == "training":
            loss = training()
            slopes = [p.grad for p in model.parameters() if p.grad is not None]
            return [-loss.item(), float(sum(torch.sum(slope * slope) for slope in slopes)) ** 0.5]
        logits = prefill()
        return [logits.mean().item(), logits.norm().item()]

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return training if case.kind == "training" else prefill, check, {"versions": versions}


if __name__ == "__main__":
    worker.serve(CASES, prepare)
