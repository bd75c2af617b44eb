"""lm-eval's `local-chat-completions`, unchanged, against the server.

lm-eval stays out of the test extra (it brings datasets and a hundred megabytes): ZPPO_LM_EVAL names the Python of an
environment that has `lm-eval[api]`. With torch in it nothing else is needed.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.serve.conftest import MODEL
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.sample import sample

PYTHON = os.environ.get("ZPPO_LM_EVAL", "")
QUESTIONS = [f"Add {number}. Answer in \\boxed{{}}." for number in range(6)]
STOP = "}"

TASK = """\
task: boxed
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["{stop}"]
  max_gen_toks: 20
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.mark.skipif(not PYTHON, reason="ZPPO_LM_EVAL names no Python with lm-eval[api]")
def test_lm_eval_scores_what_the_server_says(live, tmp_path):
    """Half of the gold answers are the model's greedy answers, so the score is known."""
    processor = live.loaded.processor
    requests = [Request("x", processor.features(question, []), 1, Sampling(0.0)) for question in QUESTIONS]
    samples = sample(live.engine, live.loaded.params, requests)
    said = [processor.decode(one.token_ids_T).split(STOP)[0] for [one] in samples]
    rows = [
        {"question": question, "answer": text if place % 2 else "other"}
        for place, (question, text) in enumerate(zip(QUESTIONS, said, strict=True))
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "boxed.yaml").write_text(TASK.format(data=data, stop=STOP))
    arguments = f"model={MODEL},base_url={live.url}/chat/completions,num_concurrent=3,max_retries=1"
    done = subprocess.run(
        [
            *(PYTHON, "-m", "lm_eval", "--model", "local-chat-completions", "--model_args", arguments),
            *("--tasks", "boxed", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
            "--apply_chat_template",
        ],
        env=os.environ | {"OPENAI_API_KEY": "any", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["boxed"]["exact_match,none"] == 0.5
