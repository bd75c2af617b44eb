"""Export of a run to a Hugging Face directory: transformers gives the same answers; every mistake is one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from tests import runs
from tests.models.conftest import torch_model
from zppo_jax.data.digits import DigitsSource
from zppo_jax.export import __main__ as command_line
from zppo_jax.models import qwen3_5
from zppo_jax.processor import Processor
from zppo_jax.rollout import generate
from zppo_jax.rollout.banned import banned_mask
from zppo_jax.run import checkpoint
from zppo_jax.zppo import prompts

FILES = [
    *("chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
    *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "video_preprocessor_config.json"),
]
LAST_STEP = 6
NUM_NEW = 10


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the real command in a separate process, with a quick heartbeat."""
    quick = "from zppo_jax.command.heartbeat import Heartbeat; Heartbeat.first = Heartbeat.interval = 0.02"
    return subprocess.run(
        [sys.executable, "-c", f"{quick}; from zppo_jax.export import __main__; __main__.main()", *map(str, arguments)],
        cwd=runs.ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def refused(*arguments: object, capsys: Any) -> tuple[int, str]:
    """Status and message of the command in this process."""
    with pytest.raises(SystemExit) as caught:
        command_line.main(["export", *map(str, arguments)])
    out, err = capsys.readouterr()
    *beats, line = err.splitlines()  # a busy machine takes long enough for a heartbeat
    assert all(beat.startswith(("starting: ", "reading step ", "writing ")) for beat in beats), err
    assert out == "" and line.startswith("zppo_jax: "), err
    assert isinstance(caught.value.code, int)
    return caught.value.code, line


@pytest.fixture(scope="module")
def exported(straight, tmp_path_factory):
    """The export of a run of six steps, by the command line."""
    out = tmp_path_factory.mktemp("export") / "student"
    result = command(f"--checkpoint={straight}", f"--out={out}")
    assert result.returncode == 0, result.stderr
    [line] = result.stdout.splitlines()
    assert line.startswith(f"step {LAST_STEP} of {straight} is in {out}: 0.") and "MB in float32; transformers" in line
    assert re.search(r"^starting: importing jax and orbax, \d+ s$", result.stderr, re.MULTILINE), "nothing is said"
    reading = rf"^reading step {LAST_STEP} of {re.escape(str(straight))}, 0\.\d M parameters, \d s$"
    assert re.search(reading, result.stderr, re.MULTILINE), result.stderr
    return out


@pytest.fixture(scope="module")
def oracle(exported):
    return torch_model(exported)


@pytest.fixture(scope="module")
def ours(exported) -> qwen3_5.Model:
    return qwen3_5.load(exported)


@pytest.fixture(scope="module")
def batch(exported) -> dict[str, np.ndarray]:
    """Four questions with images, encoded by the exported processor."""
    questions = DigitsSource("rules", "train", 8, 0)
    template = prompts.get_template("compact")
    samples = [(prompts.plain_text(one.text, template), one.images) for one in (questions[n] for n in (0, 1, 2, 5))]
    return Processor.from_directory(exported, max_pixels=4 * 1024).hf_inputs(samples)


def torch_inputs(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(value) for name, value in batch.items()}


# ---------------------------------------------------------------- the exported files


def test_everything_that_others_need_is_there(exported):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    assert [path.name for path in exported.parent.iterdir()] == ["student"]
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(Processor.from_directory(exported).stop_ids)
    assert len(generation["eos_token_id"]) == 2


def test_the_weights_are_those_of_the_checkpoint(exported, straight, start):
    saved: Any = ocp.StandardCheckpointer().restore((straight / "checkpoints" / str(LAST_STEP) / "state").absolute())
    loaded = qwen3_5.load(exported).params
    jax.tree.map(np.testing.assert_array_equal, loaded, saved["params"])
    before = qwen3_5.load(start).params
    assert (np.asarray(loaded["text"]["embed"]) != np.asarray(before["text"]["embed"])).any(), "nothing was learnt"


def test_the_processor_is_that_of_the_start(exported, start):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"):
        assert (exported / name).read_bytes() == (start / name).read_bytes(), name


def test_transformers_gives_the_same_logits(oracle, ours, batch):
    import torch

    with torch.no_grad():
        expected = oracle(**torch_inputs(batch)).logits.numpy()
    valid = batch["attention_mask"] != 0
    logits = np.asarray(qwen3_5.forward(ours, **batch))
    assert expected[valid].std() > 0.5
    np.testing.assert_allclose(logits[valid], expected[valid], atol=2e-4)


def test_transformers_generates_the_same_greedy_tokens(oracle, ours, batch):
    """With the stop ids of the exported generation_config.json."""
    banned = np.flatnonzero(banned_mask(ours.config))
    ids = oracle.generate(
        **torch_inputs(batch), max_new_tokens=NUM_NEW, do_sample=False, suppress_tokens=banned.tolist()
    )
    expected = ids[:, batch["input_ids"].shape[1] :].numpy()
    out = generate(ours, batch, num_samples=1, max_new_tokens=NUM_NEW, temperature=0.0)
    lengths = out.lengths[:, 0]
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(out.tokens[row, 0, :length], expected[row, :length])
        assert (expected[row, length:] == ours.config.pad_token_id).all()
    assert len({tuple(row) for row in expected}) > 1, "a model that says one thing only proves little"


def test_transformers_loads_the_configurations_and_the_processor(exported, start):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    ids = Processor.from_directory(start).tokenizer.encode("Add the digits.").ids
    assert tokenizer("Add the digits.")["input_ids"] == ids and tokenizer.eos_token == "<|im_end|>"
    assert "<|im_start|>assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    config: Any = transformers.AutoConfig.from_pretrained(exported)
    assert type(config).__name__ == "Qwen3_5Config" and config.text_config.num_hidden_layers == 2
    generation = transformers.GenerationConfig.from_pretrained(exported)
    assert generation.eos_token_id == [*Processor.from_directory(start).stop_ids]
    images: Any = transformers.AutoImageProcessor.from_pretrained(exported, backend="pil")
    assert images.patch_size == 16 and list(images.image_mean) == [0.5] * 3


# ---------------------------------------------------------------- choices


def test_an_earlier_step_in_another_dtype_replaces_an_earlier_export(straight, tmp_path, capsys):
    for flags in (["--step=best"], ["--step=3", "--dtype=bfloat16"]):
        command_line.main(["export", f"--checkpoint={straight}", f"--out={tmp_path / 'out'}", *flags])
    best, third = capsys.readouterr().out.splitlines()
    accuracies = {row["step"]: row["eval/accuracy"] for row in runs.metrics(straight) if row["step"] in (3, LAST_STEP)}
    assert best.startswith(f"step {max(accuracies, key=lambda step: (accuracies[step], step))} of {straight}")
    assert third.startswith(f"step 3 of {straight}")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert str(tensors["model.language_model.embed_tokens.weight"].dtype) == "bfloat16"
    saved: Any = ocp.StandardCheckpointer().restore((straight / "checkpoints" / "3" / "state").absolute())
    np.testing.assert_array_equal(
        tensors["model.language_model.embed_tokens.weight"],
        np.asarray(saved["params"]["text"]["embed"]).astype("bfloat16"),
    )


SHARDED = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
from pathlib import Path
import jax
from zppo_jax.run import checkpoint
from zppo_jax import parallel
from zppo_jax.models import qwen3_5

start, folder = map(Path, sys.argv[1:])
params = qwen3_5.load(start, mesh=parallel.make_mesh(fsdp=2, tensor=2)).params
assert sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params)) > 20
checkpoints = checkpoint.Checkpoints(folder / "checkpoints", 2)
checkpoints.save(1, {"params": params, "optimizer": {"trace": params["text"]["embed"]}}, {})
checkpoints.close()
"""


def test_a_checkpoint_of_four_devices_is_exported_on_one(start, straight, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(runs.ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, str(start), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    shutil.copy(straight / "config.json", tmp_path)
    result = command(f"--checkpoint={tmp_path}", f"--out={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    exported, original = (load_file(path / "model.safetensors") for path in (tmp_path / "out", start))
    assert {name: tensor.tobytes() for name, tensor in exported.items()} == {
        name: tensor.tobytes() for name, tensor in original.items()
    }


def test_the_optimiser_is_not_read(straight, start, monkeypatch):
    """Orbax is asked only for the arrays of the parameters."""
    asked: list[Any] = []
    restore = ocp.PyTreeCheckpointer.restore

    def spy(self, *arguments, **named):
        asked.append(named["args"].item)
        return restore(self, *arguments, **named)

    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", spy)
    abstract = qwen3_5.abstract_params(qwen3_5.load(start).config)
    params = checkpoint.restore_params(straight / "checkpoints", LAST_STEP, abstract)
    assert [list(item) for item in asked] == [["params"]]
    assert jax.tree.structure(params) == jax.tree.structure(abstract)


# ---------------------------------------------------------------- mistakes


@pytest.fixture
def run(straight, tmp_path) -> Path:
    """A separate run, to be damaged."""
    return shutil.copytree(straight, tmp_path / "run")


def test_help_comes_without_jax():
    script = (
        "import sys; from zppo_jax.export.__main__ import main; main(['export', '--help']); "
        "assert 'jax' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=runs.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for word in ("python -m zppo_jax.export --checkpoint=", "--out=", "--step=N", "--dtype=NAME", "--origin="):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--checkpoint is missing, as in `python -m"),
        (["--checkpoint=x"], "--out is missing"),
        (["--chekpoint=x"], "Did you mean: checkpoint"),
        (["runs/x"], "'runs/x' is not a flag"),
        (["--checkpoint=/no/such/run", "--out=x"], "/no/such/run: there is no such directory"),
        (["--checkpoint=x", "--out=x", "--step=three"], "--step=three"),
        (["--checkpoint=x", "--out=x", "--dtype=int8"], "float32|bfloat16|float16"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, words, capsys):
    status, message = refused(*arguments, capsys=capsys)
    assert status == 2 and words in message


def test_a_directory_that_is_no_run_is_said_so(start, tmp_path, capsys):
    status, message = refused(f"--checkpoint={tmp_path}", f"--out={tmp_path / 'out'}", capsys=capsys)
    assert status == 2 and "is not a run directory" in message


def test_a_run_without_a_checkpoint_is_one_line(run, tmp_path, capsys):
    shutil.rmtree(run / "checkpoints")
    status, message = refused(f"--checkpoint={run}", f"--out={tmp_path / 'out'}", capsys=capsys)
    assert status == 1 and "holds no checkpoint yet" in message


def test_another_step_is_answered_with_the_steps(run, tmp_path, capsys):
    status, message = refused(f"--checkpoint={run}", f"--out={tmp_path / 'out'}", "--step=5", capsys=capsys)
    assert status == 2 and "holds the checkpoints of steps 3, 6" in message


@pytest.mark.parametrize("harm", ["parameters", "metadata", "cut"])
def test_a_damaged_checkpoint_is_one_line_and_nothing_is_written(harm, run, tmp_path, capsys):
    state = run / "checkpoints" / str(LAST_STEP) / "state"
    if harm == "parameters":
        shutil.rmtree(state / "d") if (state / "d").is_dir() else (state / "d").unlink()
    elif harm == "metadata":
        (state / "_METADATA").unlink()
    else:
        (state / "_METADATA").write_bytes((state / "_METADATA").read_bytes()[:20])
    status, message = refused(f"--checkpoint={run}", f"--out={tmp_path / 'out'}", capsys=capsys)
    assert status == 1 and f"{run / 'checkpoints' / str(LAST_STEP)} is damaged" in message and len(message) < 600
    assert not (tmp_path / "out").exists()


def test_a_damaged_configuration_is_one_line(run, tmp_path, capsys):
    (run / "config.json").write_text("{")
    status, message = refused(f"--checkpoint={run}", f"--out={tmp_path / 'out'}", capsys=capsys)
    assert status == 1 and "config.json is damaged" in message


def test_a_start_that_has_moved_is_named_by_origin(run, start, tmp_path, capsys):
    settings = json.loads((run / "config.json").read_text())
    settings["model"]["path"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(settings))
    status, message = refused(f"--checkpoint={run}", f"--out={tmp_path / 'out'}", capsys=capsys)
    assert status == 1 and "--origin=DIR" in message and "gone" in message
    command_line.main(["export", f"--checkpoint={run}", f"--out={tmp_path / 'out'}", f"--origin={start}"])
    assert f"step {LAST_STEP} of {run} is in" in capsys.readouterr().out


def test_another_model_than_the_runs_is_refused(run, tmp_path, capsys):
    origin = f"--origin={runs.ROOT / 'zppo_jax' / 'assets' / 'tiny' / 'student'}"
    status, message = refused(f"--checkpoint={run}", f"--out={tmp_path / 'out'}", origin, capsys=capsys)
    assert status == 1 and "is of another model" in message and "text/linear/" in message


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "config.json"])
def test_an_origin_that_lacks_a_file_is_one_line(name, run, start, tmp_path, capsys):
    origin = shutil.copytree(start, tmp_path / "origin")
    (origin / name).unlink()
    arguments = (f"--checkpoint={run}", f"--out={tmp_path / 'out'}", f"--origin={origin}")
    status, message = refused(*arguments, capsys=capsys)
    assert status == 1 and str(origin) in message and name in message
    assert not (tmp_path / "out").exists()


def test_what_is_not_an_export_is_never_replaced(run, start, tmp_path, capsys):
    out = shutil.copytree(start, tmp_path / "out")
    (out / "notes.txt").write_text("precious")
    (out / "model.safetensors").unlink()
    status, message = refused(f"--checkpoint={run}", f"--out={out}", capsys=capsys)
    assert status == 1 and "did not write" in message and (out / "notes.txt").read_text() == "precious"


def test_sampling_settings_of_the_start_are_kept(run, start, tmp_path):
    origin = shutil.copytree(start, tmp_path / "origin")
    (origin / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "temperature": 0.6, "top_k": 20}))
    command_line.main(["export", f"--checkpoint={run}", f"--out={tmp_path / 'out'}", f"--origin={origin}"])
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    stop_ids = Processor.from_directory(start).stop_ids
    assert generation["eos_token_id"] == [*stop_ids, 7]
    assert (generation["temperature"], generation["top_k"]) == (0.6, 20)
