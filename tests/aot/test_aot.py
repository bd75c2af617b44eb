"""Programs compiled for a slice without having one: names, sizes, and one real compilation if libtpu is installed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import pytest

from configs import paper, tiny
from tests import runs
from zppo_jax import parallel, setup
from zppo_jax.aot import __main__ as command
from zppo_jax.aot import compiling, memory, programs, report, table, topologies
from zppo_jax.config import from_config_dict
from zppo_jax.errors import ConfigError
from zppo_jax.update.objective import OBJECTIVES, Clipped
from zppo_jax.zppo import METHODS

QUIET: Any = None  # nothing is reported in the tests that use it
TINY = str(runs.ROOT / "configs" / "tiny.py")


@pytest.mark.parametrize(
    ("name", "libtpu", "devices"),
    [
        ("v5e-16", "v5e:4x4", 16),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v6e-64", "v6e:8x8", 64),
        ("v5p-2", "v5p:1x1x1", 1),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p:4x4x8", "v5p:4x4x8", 128),
        ("v5p-2", "v5p:1x1x1", 1),
    ],
)
def test_names_of_slices(name, libtpu, devices):
    found = topologies.parse(name)
    assert (found.name, found.libtpu, found.num_devices) == (name, libtpu, devices)


@pytest.mark.parametrize(
    "name",
    ["v5e-7", "v5p-9", "h100-8", "v5p", "v5p:axb", "", "v5p:2x4", "v5e:2x2x2", "v5e:4x2", "v5e:3x3", "v6e:0x0"],
)
def test_what_is_no_slice_is_refused_with_those_that_are(name):
    with pytest.raises(ConfigError, match=r"is not a slice: v5e-1\|4\|8.*v5p-2\|8\|16.*or a grid such as v5p:4x4x4"):
        topologies.parse(name)


def test_flags_are_this_commands_own_and_keys_are_the_trainers(monkeypatch):
    words = ["aot", f"--config={TINY}:grpo", "--topology=v5e-16", "--json", "--programs=gradient,update"]
    monkeypatch.setattr(sys, "argv", [*words, "--config.update.rows_per_microbatch=16"])  # config_flags reads it itself
    config = command.parse(sys.argv)
    assert config.method == "grpo" and config.update.rows_per_microbatch == 16
    assert command._PROGRAMS.value == ["gradient", "update"] and command._JSON.value
    with pytest.raises(ConfigError, match="--topology is missing"):
        command.parse(["aot", f"--config={TINY}"])
    with pytest.raises(ConfigError, match="no_such_key"):
        command.parse([*words, "--config.update.no_such_key=1"])
    with pytest.raises(ConfigError, match="--search compiles gradients alone"):
        command.parse([*words, "--search"])
    with pytest.raises(ConfigError, match=r"python -m zppo_jax.aot --help"):
        command.parse([*words, "--bogus"])


def test_an_unknown_method_is_one_line():
    words = [sys.executable, "-m", "zppo_jax.aot", f"--config={TINY}:ppo", "--topology=v5e-16"]
    done = subprocess.run(words, cwd=runs.ROOT, capture_output=True, text=True, timeout=60)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "method = 'ppo': there is no such method; give one of grpo" in line


def test_values_may_stand_behind_their_flags():
    words = [
        "--topology",
        "v5e-16",
        "--json",
        "--config",
        TINY,
        "--programs",
        "update",
        "--config.seed",
        "3",
        "--search",
    ]
    own_flags = ["--topology", "v5e-16", "--json", "--programs", "update", "--search"]
    assert command._divided(words) == (own_flags, ["--config", TINY, "--config.seed", "3"])


def test_an_answer_that_nobody_takes_is_told(capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert command._print("x" * 100_000) == 1
        monkeypatch.undo()
    assert "cannot be written: No space left" in capsys.readouterr().err


def test_help_teaches(capsys):
    command.main(["aot", "--help"])
    said = capsys.readouterr().out
    for name in command._FLAGS:
        assert f"--{name}" in said or f"--[no]{name}" in said, name


@pytest.mark.parametrize(("name", "host"), [("v5e-16", "v5e:2x2"), ("v5p-128", "v5p:2x2x1"), ("v6e:4x4", "v6e:2x2")])
def test_what_one_host_has_of_a_slice_is_a_slice(name, host):
    assert topologies.parse(name).part(4) == topologies.parse(host)


@pytest.mark.parametrize(
    ("path", "weights", "gigabytes"),
    [
        ("Qwen/Qwen3.5-27B-FP8", "as_stored", 30.3),
        ("Qwen/Qwen3.5-27B-FP8", "dequantised", 54.7),
        ("Qwen/Qwen3.5-27B", "as_stored", 54.7),
    ],
)
def test_an_fp8_teacher_is_counted_as_it_stays_in_memory(path, weights, gigabytes):
    config = from_config_dict(paper.get_config())
    config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, path=path, weights=weights))
    model = programs.model_config(path, "teacher")
    found = setup.placed_model(config, model, programs.float8_kernels(config, model))
    assert parallel.device_bytes(found.params) / 1e9 == pytest.approx(gigabytes, abs=0.1)


def test_models_by_directory_and_by_name(tmp_path):
    assert programs.model_config("", "student").text.hidden_size < 512
    assert programs.model_config("Qwen/Qwen3.5-27B-FP8", "teacher") == programs.sizes.get("27B")
    with pytest.raises(
        ConfigError, match=r"teacher.path = 'Owner/Other' is neither a directory .* nor a published size"
    ):
        programs.model_config("Owner/Other", "teacher")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model.path = .*config.json has no text_config"):
        programs.model_config(str(tmp_path), "student")


def test_collectives_are_counted_in_bytes():
    text = """
      %a = f32[4,8]{1,0} all-gather(%x), dimensions={0}
      %b = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%y), dimensions={0}
      %c = f32[] all-reduce(%z), to_apply=%add
      %d = f32[9] add(%all-reduce, %c)
      %e = (f32[2]{0}, /*index=1*/f32[3]{0}) all-reduce(%u, %v), channel_id=2, to_apply=%add
    """
    assert compiling.collective_bytes(text) == {"all-gather": 128 + 128, "all-reduce": 4 + 20}


def test_what_runs_beside_others_is_counted_once_and_a_part_of_a_sum_as_such():
    """Texts as the TPU compiler writes them: the start, update and end of one gather; a scattered sum."""
    text = """
%async_start (p: f32[2,8]) -> (f32[2,8], f32[16,8]) {
  %all-gather.1 = f32[16,8]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}
%async_step (p: f32[2,8]) -> f32[16,8] {
  %all-gather.2 = f32[16,8]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}
%all-reduce-scatter.1 (input_0: f32[64,4], input_1: f32[8]) -> (f32[8,4], f32[1]) {
  %all-reduce.3 = (f32[64,4]{1,0}, f32[8]{0}) all-reduce(%input_0, %input_1), channel_id=8, to_apply=%add
  ROOT %tuple.1 = (f32[8,4]{1,0}, f32[1]{0}) tuple(%a, %b)
}
ENTRY %main.1 (p: f32[2,8]) -> f32[] {
  %all-gather.4 = f32[16,8]{1,0} all-gather(%p), channel_id=9, dimensions={0}
}
"""
    assert compiling.collective_bytes(text) == {"all-gather": 2 * 512, "reduce-scatter": 128 + 4}


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory. Used 23.90G of 15.75G hbm.", 23.9),
        ("RESOURCE_EXHAUSTED: total memory required (16.17G) exceeds available HBM (15.75G)", 16.17),
        ("INVALID_ARGUMENT: something else", None),
    ],
)
def test_a_refusal_says_how_much_was_needed(message, needed):
    found = compiling.bytes_needed(message)
    assert found == (None if needed is None else int(needed * 2**30))


def test_kinds_of_programs():
    names = {
        "zero gradient": "zeros", "gradient": "gradient", "update": "update", "log-probabilities": "logprobs",
        "prefill of 64 tokens": "prefill", "fill of 24 keys after 8 tokens": "fill",
        "teacher's decode over 24 keys": "teacher decode", "teacher's compressor's weights": "compressor weights",
    }  # fmt: skip
    assert {name: report._label(name) for name in names} == names


@pytest.fixture(scope="module")
def tiny_run():
    """configs/tiny.py and its teacher, which also compresses, on this machine's first device."""
    config = from_config_dict(tiny.get_config())
    config = dataclasses.replace(
        config,
        teacher=dataclasses.replace(
            config.teacher, compress=dataclasses.replace(config.teacher.compress, enabled=True)
        ),
        update=dataclasses.replace(config.update, rows_per_microbatch=1),
    )
    mesh = setup.make_mesh(config, jax.devices()[:1])
    run = programs.shapes(config, mesh, mesh, True)
    recorder = compiling.Recorder(mesh, lambda name: name in COMPILED)
    return config, run, programs.ask(config, run, recorder), recorder


COMPILED = ("weights", "fill of 80 keys after 64 tokens", "prefill of 64 tokens", "vision")


def test_what_lies_beside_a_program_is_what_the_run_holds_and_it_does_not_take(tiny_run):
    config, run, found, _ = tiny_run
    resident = found.student.resident_bytes(run.state["params"], 1)
    params, optimizer, teacher = (run.bytes_of(name) for name in ("params", "optimizer", "teacher"))
    vision = parallel.device_bytes(run.state["params"]["vision"])

    def beside(name: str) -> int:
        return memory.beside(config, run, found, name)

    assert beside("update") == teacher and beside("gradient") == optimizer + teacher
    features = beside("decode over 80 keys") - optimizer - teacher - params - resident["prompts"]
    assert features > 0 and features % resident["features"] == 0
    held = optimizer + teacher + features
    assert beside("prefill of 64 tokens") == held + vision + resident["weights"] + resident["slots"]
    assert beside("fill of 80 keys after 64 tokens") == held + params + resident["weights"]
    assert beside("decode over 80 keys") == held + params + resident["prompts"]
    compressor = found.engine_of("compressor's decode over 1 keys")
    assert compressor is found.compressor, (
        "a teacher of the student's shape shares its programs; the compressor has longer prompts"
    )
    (bucket,) = compressor.shapes.buckets
    name = f"compressor's fill of {compressor.shapes.num_keys} keys after {bucket} tokens"
    weights = compressor.resident_bytes(run.state["params"], 0)["weights"]
    assert beside(name) == params + optimizer + teacher + features + weights, "without the student's decoding weights"


def test_a_teacher_with_devices_of_its_own_is_alone_on_them(tiny_run, monkeypatch):
    """Beside its programs there is nothing of the student's, and nothing of it beside the student's."""
    config, run, found, _ = tiny_run
    mesh = setup.teacher_mesh(config, run.teacher.config, jax.devices()[:1])
    apart = programs.shapes(config, run.mesh, run.sampling_mesh, True, mesh)
    recorder = compiling.Recorder(run.mesh, lambda name: False)
    asked = programs.ask(config, apart, recorder)
    assert asked.teacher is not None and asked.compressor is not None and apart.teacher is not None
    assert asked.teacher.name == "teacher's " and recorder.asked["teacher's vision"][1] is mesh
    (bucket,) = asked.compressor.shapes.buckets
    name = f"teacher's compressor's fill of {asked.compressor.shapes.num_keys} keys after {bucket} tokens"
    resident = asked.compressor.resident_bytes(apart.teacher.params, 0)
    assert memory.beside(config, apart, asked, name) == run.bytes_of("teacher") + resident["weights"]
    for of_student in ("gradient", "decode over 80 keys"):
        less = memory.beside(config, run, found, of_student) - memory.beside(config, apart, asked, of_student)
        assert less >= run.bytes_of("teacher"), of_student
    prefill = memory.beside(config, apart, asked, "teacher's prefill of 64 tokens")
    assert prefill < memory.beside(config, run, found, "prefill of 64 tokens")


def test_a_teacher_that_does_not_fit_comes_with_advice(tiny_run, monkeypatch):
    config, run, _, _ = tiny_run
    monkeypatch.setattr(programs, "make_meshes", lambda config, topology: (run.mesh, run.mesh))
    monkeypatch.setattr(report.importlib.metadata, "version", lambda name: "0")

    def answer(needed: int) -> dict[str, Any]:
        def compiled(asked, run, console):
            done = [compiling.Compiled(name, 1.0, needed=needed) for name in ("update", "compressor's weights")]
            return done, programs.ask(asked.config, run, compiling.Recorder(run.mesh, lambda name: False))

        monkeypatch.setattr(report, "_compile", compiled)
        return report.answer(report.Question(config, topologies.parse("v5e-1")), False, QUIET)

    assert "advice" not in answer(2**20)
    advice = answer(2**40)["advice"]
    for way in ("teacher.path=http://", "teacher.path=recorded:", "teacher.devices=N"):
        assert way in advice
    assert list(table.lines(answer(2**40)))[-1] == advice


def test_what_is_counted_is_what_the_compiler_counts(tiny_run):
    """Compiled for this machine: arguments and results of the programs that fill slots, and decoding weights."""
    _, run, found, recorder = tiny_run
    resident = found.student.resident_bytes(run.state["params"], 1)
    compiled = {one.name: one for one in recorder.compile_all(lambda name: None)}
    assert set(compiled) == set(COMPILED)
    rows = 200 * found.student.num_slots  # the arguments of fill for each row
    fill = compiled["fill of 80 keys after 64 tokens"].argument
    assert 0 <= fill - resident["slots"] - resident["prompts"] < rows
    batch, params = found.student.batch_prompts((), 1), run.state["params"]
    taken = {"vision": ("patches_ISC", "grid_IS5"), "text": ("tokens_BT", "mask_BT", "positions_3BT", "feature_BT")}
    taken = {
        part: parallel.device_bytes(params[part]) + sum(batch[name].nbytes for name in names)
        for part, names in taken.items()
    }
    assert compiled["vision"].argument == taken["vision"], "not the language model"
    unused = taken["text"] + resident["features"] - compiled["prefill of 64 tokens"].argument
    last_layer = parallel.device_bytes(params["text"]["full"]) // run.student.text.num_groups
    assert 0 <= unused < last_layer, "not the vision tower, the last norm and what the last layer does with its keys"


def test_a_compilation_that_takes_too_long_is_given_up():
    mesh = setup.make_mesh(from_config_dict(tiny.get_config()), jax.devices()[:1])
    recorder, go_on = compiling.Recorder(mesh, lambda name: True, limit=0.1), threading.Event()
    for name in ("slow", "after"):
        recorder.program(name, go_on.wait)
    slow, after = recorder.compile_all(lambda name: None)
    go_on.set()
    assert (slow.unfinished, slow.error) == (True, "not compiled in 0 minutes")
    assert (after.unfinished, after.error, after.seconds) == (True, "not begun: time ran out before", 0.0)


def test_work_is_that_of_the_rows_that_a_program_has(tiny_run):
    """A micro-batch has eight rows here, the check of log-probabilities one per device, each a third of the work."""
    config, run, found, _ = tiny_run
    eight = dataclasses.replace(config, update=dataclasses.replace(config.update, rows_per_microbatch=8))
    one, many = (report._tflop(each, run, found, "gradient") for each in (config, eight))
    looked = [report._tflop(each, run, found, "log-probabilities") for each in (config, eight)]
    assert one and many and many == pytest.approx(8 * one) and looked == pytest.approx([one / 3, one / 3])
    old = [report._tflop(each, run, found, "old log-probabilities") for each in (config, eight)]
    assert old == pytest.approx([one / 3, many / 3]), "those of update.old_logprobs=trainer are of every row"


def test_a_table_of_markdown():
    one = {
        "name": "gradient", "argument_gib": 1.0, "temp_gib": 2.0, "peak_gib": 2.5, "beside_gib": 0.25, "limit_gib": 4,
        "fits": True, "missing_gib": 0.0, "compile_s": 61.2, "collective_bytes": {"all-gather": 2**29},
        "tflop": 1234.5, "seconds_at_40_percent": 1.5,
    }  # fmt: skip
    refused = one | {"name": "update", "fits": False, "missing_gib": 12.5, "peak_gib": 16.25, "error": "Used 16.25G"}
    late = refused | {"fits": None, "missing_gib": None, "peak_gib": 0.0, "error": "not compiled in 25 minutes"}
    answer = {
        "topology": "v5e-16", "devices": 16, "mesh": {"data": 1, "fsdp": 16, "tensor": 1}, "date": "2026-11-26",
        "versions": {"jax": "0.10.2"}, "state_gib": 0.4, "teacher_gib": 0.0, "programs": [one, refused, late],
    }  # fmt: skip
    said = list(table.lines(answer))
    assert said[0].startswith("v5e-16, 16 devices, mesh data 1 x fsdp 16 x tensor 1; parameters and optimiser 0.40 GiB")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in said[2:]]
    assert tuple(cells[0]) == table.COLUMNS and all(len(line) == len(said[2]) for line in said[2:])
    assert "|".join(cells[2]) == "gradient|1.00|2.00|2.50|0.25|4.00|yes|all-gather 0.50|1,234|1.50|61 s"
    assert cells[3][1:7] == ["", "", "16.25", "0.25", "4.00", "12.50 short"]
    assert cells[4][3] == "" and cells[4][6] == "not compiled in 25 minutes"


@pytest.mark.parametrize(
    ("fits", "largest", "decided", "said"),
    [
        ([True, True, False], 32, True, "The largest that fits: 32 rows."),
        ([False], 0, True, "None fits."),
        ([True, None], 16, False, "Time ran out at 32 rows: 16 rows fit."),
        ([None], None, False, "Time ran out at 16 rows: nothing is known."),
    ],
)
def test_a_search_says_what_it_knows(tiny_run, monkeypatch, fits, largest, decided, said):
    """The results of compilations are scripted; the command evaluates them."""
    config, run, found, _ = tiny_run
    answers = iter(fits)

    def compile_one(asked, run, console):
        fit = next(answers)
        needed = 0 if fit else 2**50
        return [
            compiling.Compiled("gradient", 1.0, needed=needed, unfinished=fit is None, error="late" * (fit is None))
        ], found

    monkeypatch.setattr(report, "_compile", compile_one)
    monkeypatch.setattr(report.parallel, "num_shards", lambda axis: 16)
    answer = report._search(report.Question(config, topologies.parse("v5e-16")), run, QUIET)
    assert (answer["largest_rows_per_microbatch"], answer["decided"]) == (largest, decided)
    assert table._found(answer) == said and len(list(table._tried(answer))) == len(fits)


def answered(tree: Any, monkeypatch) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The answer about a run on one device, of which nothing is compiled, and the programs that were asked for."""
    config, slices = from_config_dict(tree), topologies.parse("v5e-1")
    mesh = setup.make_mesh(config, jax.devices()[:1])
    monkeypatch.setattr(programs, "make_meshes", lambda config, topology: (mesh, mesh))
    monkeypatch.setattr(report, "_compile", lambda asked, run, console: ([], programs.ask(asked.config, run, recorder)))
    monkeypatch.setattr(report.importlib.metadata, "version", lambda name: "0")
    recorder = compiling.Recorder(mesh, lambda name: False)
    return report.answer(report.Question(config, slices), False, QUIET), recorder.asked


def test_a_teacher_that_only_compresses_is_part_of_the_run(monkeypatch):
    tree = tiny.get_config("grpo_replay_ncq")
    tree.teacher.compress.enabled = True
    answer, asked = answered(tree, monkeypatch)
    assert answer["teacher_gib"] > 0 and any("compressor's decode" in name for name in asked)


@pytest.mark.parametrize(("path", "model"), [("http://localhost:8000/v1", "qwen"), ("recorded:runs/tiny/teacher", "")])
def test_a_teacher_elsewhere_has_no_programs(path, model, monkeypatch):
    tree = tiny.get_config()
    tree.teacher.path, tree.teacher.model = path, model
    answer, asked = answered(tree, monkeypatch)
    assert answer["teacher_gib"] == 0 and "gradient" in asked
    assert not any("teacher" in name or "compressor" in name for name in asked)


def test_a_row_that_learns_from_the_teacher_or_compares_with_it_is_compiled_so(monkeypatch):
    """Its answers are sampled; as a reference it is an argument of the gradient, and beside every other program."""
    config = from_config_dict(tiny.get_config("grpo"))
    mesh = setup.make_mesh(config, jax.devices()[:1])

    def asked(with_teacher: bool, **columns: Any) -> tuple[programs.Shapes, programs.Programs, dict[str, Any]]:
        monkeypatch.setitem(METHODS, "grpo", dataclasses.replace(METHODS["grpo"], **columns))
        run, recorder = programs.shapes(config, mesh, mesh, with_teacher), compiling.Recorder(mesh, lambda name: False)
        return run, programs.ask(config, run, recorder), recorder.asked

    monkeypatch.setitem(OBJECTIVES, "clipped", lambda config: Imitation(0.2, 0.28, 10.0))
    run, found, names = asked(True, learns_from="teacher")
    assert found.teacher is not None and any("decode" in name for name in names) and run.bytes_of("teacher") > 0
    prepared: list[Any] = []
    monkeypatch.setattr(programs.Engine, "prepare", lambda self, params, *_: prepared.append(params))
    asked(True, learns_from="teacher")
    assert prepared[-1] is not run.sampled and len(prepared) == 2, "the student's and the teacher's"
    monkeypatch.undo()

    monkeypatch.setitem(OBJECTIVES, "clipped", lambda config: Compared(0.2, 0.28, 10.0))
    run, found, names = asked(False, reference=True)
    size = run.bytes_of("reference")
    assert found.teacher is None and size > 0 and run.bytes_of("teacher") == 0 and "gradient" in names
    optimizer = run.bytes_of("optimizer")
    assert memory.beside(config, run, found, "gradient") == optimizer
    assert memory.beside(config, run, found, "update") == size


class Imitation(Clipped):
    """A loss that uses no log-probabilities of a sampler."""

    mismatch: ClassVar[Mapping[str, str]] = {}


class Compared(Clipped):
    """A loss that is given a reference model."""

    needs_reference: ClassVar[bool] = True


def test_the_document_holds_what_the_command_said():
    """docs/scale.md has the table of every kept answer, and no other."""
    text, kept = (runs.ROOT / "docs" / "scale.md").read_text(), sorted((runs.ROOT / "docs" / "scale").glob("*.json"))
    assert kept
    for path in kept:
        assert "\n".join(table.section(json.loads(path.read_text()))) in text, f"python -m zppo_jax.aot.table {path}"
    assert text.count("python -m zppo_jax.aot --config=") == len(kept)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_real_compilation_for_a_slice():
    """The optimiser's step of configs/tiny.py on 16 chips of v5e, and the programs with random keys; standard output
    has only the object."""
    result = subprocess.run(
        [sys.executable, "-m", "zppo_jax.aot", f"--config={TINY}", "--topology=v5e-16", "--json",
         "--programs=update,weights,teacher's weights,fill of 36"],
        cwd=runs.ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["topology"], answer["devices"]) == ("v5e-16", 16)
    found = {one["program"]: one for one in answer["programs"]}
    assert set(found) == {"update", "weights", "teacher weights", "fill"}
    for one in found.values():
        assert one["fits"] and 0 < one["peak_gib"] < one["limit_gib"] == 15.75 and one["compile_s"] > 0
