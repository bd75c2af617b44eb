"""lmms-eval's `openai`, unchanged, against the server, on prompts with one image and with two.

lmms-eval stays out of the test extra (its dependencies are gigabytes): ZPPO_LMMS_EVAL names the Python of an
environment that has it. This is enough for 0.7.3, which needs filelock before version 4; any build of torch does:

    python -m venv lmms && source lmms/bin/activate
    pip install torch
    pip install --no-deps lmms-eval
    pip install accelerate datasets evaluate "filelock<4" loguru openai pillow
    pip install pytablewriter python-dotenv pytz sacrebleu tenacity transformers
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from PIL import Image

from tests.serve.conftest import MODEL, QUESTION
from zppo_jax.data.digits import DigitsSource
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.sample import sample

PYTHON = os.environ.get("ZPPO_LMMS_EVAL", "")
NUM_QUESTIONS = 4
MAX_NEW_TOKENS = 20

# The generation_kwargs of lmms-eval's POPE, and a seed; it does not send num_beams and do_sample.
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: generate_until
test_split: test
doc_to_visual: !function pictures.load
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  temperature: 0
  top_p: 0
  seed: 42
  num_beams: 1
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
PICTURES = """\
from PIL import Image

def load(doc):
    return [Image.open(path) for path in doc["images"]]
"""


@pytest.mark.skipif(not PYTHON, reason="ZPPO_LMMS_EVAL names no Python with lmms-eval")
def test_lmms_eval_scores_what_the_server_says(live, tmp_path):
    """Half of the gold answers are the model's greedy answers about these images, so the score is known."""
    processor = live.loaded.processor
    source = DigitsSource("rules", "test", 2 * NUM_QUESTIONS, 0)
    (tmp_path / "pictures.py").write_text(PICTURES)
    counts = {"input_tokens": 0, "output_tokens": 0}
    for name, num_images in (("one", 1), ("two", 2)):
        rows, requests = [], []
        for first in range(0, num_images * NUM_QUESTIONS, num_images):
            places = range(first, first + num_images)
            images = [source[place].images[0] for place in places]
            paths = [str(tmp_path / f"{place}.png") for place in places]
            for image, path in zip(images, paths, strict=True):
                Image.fromarray(image).save(path)
            rows.append({"question": QUESTION, "images": paths, "answer": "other"})
            prompt = processor.features(QUESTION, images)
            requests.append(Request("x", prompt, 1, Sampling(0.0), max_new_tokens=MAX_NEW_TOKENS))
        samples = sample(live.engine, live.loaded.params, requests)
        # lmms-eval removes the thoughts, also those that the prompt opened.
        said = [processor.decode(one.token_ids_T).split("</think>")[-1].strip() for [one] in samples]
        assert len(set(said)) == NUM_QUESTIONS, "the question is one, so the images make the difference"
        for place in range(1, NUM_QUESTIONS, 2):
            rows[place]["answer"] = said[place]
        counts["input_tokens"] += sum(request.features.num_tokens for request in requests)
        counts["output_tokens"] += sum(len(one.token_ids_T) for [one] in samples)
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = TASK.format(name=name, data=data, max_new_tokens=MAX_NEW_TOKENS)
        (tmp_path / f"{name}.yaml").write_text(task)
    arguments = f"model={MODEL},base_url={live.url},num_concurrent=3,max_retries=1"
    done = subprocess.run(
        [
            *(PYTHON, "-m", "lmms_eval", "--model", "openai", "--model_args", arguments, "--tasks", "one,two"),
            *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
        ],
        env=os.environ | {"OPENAI_API_KEY": "any", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    [file] = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(file.read_text())
    scores = {name: result["exact_match,none"] for name, result in results["results"].items()}
    assert scores == {"one": 0.5, "two": 0.5}
    assert {name: results["usage"]["total"][name] for name in counts} == counts
