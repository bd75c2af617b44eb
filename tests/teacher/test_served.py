"""The served teacher, against a scripted server in its own process: what it sends, and what it makes of replies."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs import tiny
from tests import runs
from tests.remote.processes import Scripted
from zppo_jax.config import from_config_dict
from zppo_jax.data.processing import EncodedPrompt, processor_settings
from zppo_jax.errors import ConfigError
from zppo_jax.keys import RandomStream
from zppo_jax.processor import Processor, Video
from zppo_jax.processor.patches import to_patches
from zppo_jax.setup.served import served_teacher
from zppo_jax.teacher.replies import whole_text
from zppo_jax.teacher.served import ServedTeacher
from zppo_jax.types import IMAGE_MARK, VIDEO_MARK, Answer, Missed, Prompt, Question

STREAM = RandomStream(5, 3, "teacher")
NOISE = np.random.default_rng(0)


@pytest.fixture(scope="module")
def processor() -> Processor:
    directory = runs.ROOT / "zppo_jax" / "assets" / "tiny" / "teacher"
    settings = processor_settings(from_config_dict(tiny.get_config()).prompt)
    return Processor.from_directory(directory, enable_thinking=True, **settings)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    pytest.importorskip("openai")
    with Scripted("tests.teacher.scripted", tmp_path_factory.mktemp("server") / "log") as scripted:
        yield scripted


Make = Callable[..., ServedTeacher]


@pytest.fixture
def make(processor: Processor, server: Scripted) -> Iterator[Make]:
    """Makes teachers with the model that is named; `said` is what they print for the user."""
    made: list[ServedTeacher] = []

    def teacher(name: str, report: Any = None, said: list[str] | None = None, **changes: Any) -> ServedTeacher:
        server.name_models("fine", name)
        tree = tiny.get_config()
        settings = {"path": server.url, "model": name, "retries": 0, "timeout_seconds": 1.0, "num_rollouts": 2}
        tree.update_from_flattened_dict({f"teacher.{key}": value for key, value in (settings | changes).items()})
        tree.prompt.enable_thinking = True
        heard = [] if said is None else said
        made.append(served_teacher(from_config_dict(tree), processor, report, heard.append))
        made[-1].begin(3)
        return made[-1]

    yield teacher
    for one in made:
        one.close()


def item(name: str = "q", text: str = "Why?", images: Any = (), videos: Any = (), opening: str = "") -> EncodedPrompt:
    question = Question(name, text, images, "7", "math", videos=videos)
    prompt = Prompt(f"3/{name}/plain", "plain", question, text, opening=opening)
    return EncodedPrompt(prompt, None)  # type: ignore[arg-type]


def answers(teacher: ServedTeacher, items: list[EncodedPrompt]) -> dict[str, Any]:
    return dict(teacher.answer(items, STREAM))


def parts_of(server: Scripted, model: str) -> list[dict[str, Any]]:
    return server.requests(model)[-1]["body"]["messages"][0]["content"]


def pixels_of(part: dict[str, Any]) -> np.ndarray:
    head, _, content = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def noise(height: int, width: int) -> np.ndarray:
    return NOISE.integers(0, 256, (height, width, 3), np.uint8)


# ---------------------------------------------------------------- what is sent


def test_a_request_names_every_setting(make, server):
    teacher = make("thinks:a", temperature=0.7, top_p=0.9)
    found = answers(teacher, [item()])
    body = server.requests("thinks:a")[-1]["body"]
    seed = STREAM.hash("q") % 2**31
    assert body == {
        "model": "thinks:a", "messages": [{"role": "user", "content": "Why?"}], "n": 2, "seed": seed,
        "temperature": 0.7, "top_p": 0.9, "top_k": -1, "min_p": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0,
        "max_tokens": 16, "chat_template_kwargs": {"enable_thinking": True},
    }  # fmt: skip
    whole = f"<think>\nLet me see.\n</think>\n\n\\boxed{{0,4,{seed},"
    assert found == {"3/q/plain": (Answer(f"{whole}0}}", "stop"), Answer(f"{whole}1}}", "stop"))}


def test_the_pixels_are_those_of_the_students_patches(make, server, processor):
    """At their marks, and at the size that the processor shows."""
    images = [noise(70, 50), noise(32, 64), noise(9, 300)]
    text = f"A {IMAGE_MARK} and {IMAGE_MARK}{IMAGE_MARK} b"
    answers(make("fine:0"), [item(text=text, images=images)])
    parts = parts_of(server, "fine:0")
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "image_url", "image_url", "text"]
    assert [part["text"] for part in parts if part["type"] == "text"] == ["A ", " and ", " b"]
    shown = [pixels_of(part) for part in parts if part["type"] == "image_url"]
    patches = [to_patches(np.stack([one, one]), processor.config) for one in shown]
    np.testing.assert_array_equal(np.concatenate(patches), processor.features(text, images).patches_IC)


def test_a_videos_frames_are_images_after_their_times(make, server, processor):
    video = Video([noise(40, 70) for _ in range(3)], fps=2.0, indices=[0, 3, 8])
    text = f"Before{VIDEO_MARK}after"
    answers(make("fine:0.0"), [item(text=text, videos=[video])])
    parts = parts_of(server, "fine:0.0")
    texts = [part.get("text") for part in parts]
    assert texts == ["Before", "<0.0 seconds>", None, "<1.5 seconds>", None, "<4.0 seconds>", None, "after"]
    frames = np.stack([pixels_of(part) for part in parts if part["type"] == "image_url"])
    patches = to_patches(np.concatenate([frames, frames[-1:]]), processor.config)
    np.testing.assert_array_equal(patches, processor.features(text, [], [video]).patches_IC)


def test_no_mark_and_no_control_token_reaches_a_server(make, server):
    odd = f"a{IMAGE_MARK}b\ue000c <|im_end|>\n<|im_start|>system |x|<|y| {VIDEO_MARK}"
    teacher = make("fine:0.01")
    answers(teacher, [item(text=odd, images=[noise(32, 32)])])
    parts = parts_of(server, "fine:0.01")
    cleaned = "abc <| im_end |>\n<| im_start |>system |x|<|y| "
    assert [part.get("text") for part in parts] == [None, cleaned], "the image first, as in process"
    teacher.write([odd], STREAM)
    assert parts_of(server, "fine:0.01") == cleaned


def test_a_text_is_asked_for_greedily_without_thinking_and_once(make, server):
    found = make("thinks:b").write(["Write.", "Once more.", "Write."], STREAM)
    assert found[0] == found[2] != found[1] and all(isinstance(one, str) for one in found)
    body = server.requests("thinks:b")[-1]["body"]
    assert (body["temperature"], body["n"], body["max_tokens"]) == (0.0, 1, 512)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    asked = [row["body"]["messages"][0]["content"] for row in server.requests("thinks:b")]
    assert sorted(asked) == ["Once more.", "Write."]


def test_a_greedy_teacher_is_asked_for_one_response(make, server):
    """vLLM refuses n > 1 then; in process, too, all are equal."""
    (found,) = answers(make("thinks:c", temperature=0.0), [item()]).values()
    assert server.requests("thinks:c")[-1]["body"]["n"] == 1 and len(found) == 2 and found[0] == found[1]


def test_what_was_announced_is_asked_once(make, server):
    """And answers come as they are there, not in the order of the prompts."""
    teacher = make("fine:0.5", concurrency=2)
    before = len(server.requests("fine:0.5"))
    start = time.monotonic()
    teacher.ahead([item("a"), item("b")], STREAM)
    teacher.ahead([item("b")], STREAM)
    assert time.monotonic() - start < 0.15
    found = answers(teacher, [item("b"), item("c"), item("a")])
    assert sorted(found) == ["3/a/plain", "3/b/plain", "3/c/plain"] and list(found)[-1] == "3/c/plain"
    assert len(server.requests("fine:0.5")) - before == 3


# ---------------------------------------------------------------- what replies become


@pytest.mark.parametrize("model", ["thinks:d", "parsed:reasoning", "parsed:reasoning_content"])
def test_all_servers_give_one_text(make, model):
    (found,) = answers(make(model), [item()]).values()
    seed = STREAM.hash("q") % 2**31
    assert [one.text for one in found] == [
        f"<think>\nLet me see.\n</think>\n\n\\boxed{{0,4,{seed},{index}}}" for index in range(2)
    ]


WHOLE = "<think>\nSo.\n</think>\n\n7"


@pytest.mark.parametrize(
    ("content", "reasoning", "whole"),
    [
        ("So.\n</think>\n\n7", None, WHOLE),  # no parser: SGLang, vLLM, our serve
        ("<think>\nSo.\n</think>\n\n7", None, WHOLE),  # a server that shows the beginning of the prompt's end
        ("\n\n7", "So.\n", WHOLE),  # a parser that cuts: vLLM, SGLang
        ("7", "So.", WHOLE),  # one that trims, too
        ("7", "", "<think>\n\n</think>\n\n7"),  # an empty thinking
        (None, "So. And", "<think>\nSo. And"),  # cut off while it thinks
        ("So. And", None, "<think>\nSo. And"),
        ("", None, "<think>\n"),
    ],
)
def test_the_whole_text_with_thinking(content, reasoning, whole):
    assert whole_text(content, reasoning, thinking=True) == whole


@pytest.mark.parametrize(
    ("content", "reasoning", "whole"),
    [("7", None, "7"), ("", None, ""), (None, "7", "7")],  # the last: a parser that does not know of enable_thinking
)
def test_the_whole_text_without_thinking(content, reasoning, whole):
    assert whole_text(content, reasoning, thinking=False) == whole


# ---------------------------------------------------------------- bad days


@pytest.mark.parametrize(
    ("model", "reason"),
    [("few", "malformed"), ("many", "malformed"), ("no_choices", "malformed"), ("empty_choice", "malformed"),
     ("null_content", "malformed"), ("not_utf8", "malformed"), ("half_pair", "malformed"), ("odd_reason", "malformed"),
     ("twice_numbered", "malformed"), ("list_content", "malformed"), ("other_model", "malformed"),
     ("garbage", "malformed"), ("half", "malformed"), ("empty", "malformed"), ("silent", "timeout"),
     ("drip", "timeout"), ("cut", "unavailable"), ("status:500", "unavailable"), ("status:429", "unavailable"),
     ("status:401", "refused"), ("status:422", "refused"), ("too_long", "too_long"), ("unknown_kind", "unavailable")],
)  # fmt: skip
def test_a_bad_reply_is_a_miss_with_its_reason(make, model, reason):
    """All or none: also if only one of the choices is bad. Texts are missed for the same reasons."""
    teacher = make(model)
    (got,) = answers(teacher, [item()]).values()
    assert isinstance(got, Missed) and got.reason == reason and got.detail and "\n" not in got.detail, got
    teacher.begin(4)
    if model not in ("few", "many", "twice_numbered"):  # with one choice these are other cases
        (text,) = teacher.write(["Write."], STREAM)
        assert isinstance(text, Missed) and text.reason == reason


def test_one_bad_request_does_not_cost_the_others(make, processor):
    teacher = make("fine")
    damaged = item("bad", images=[np.zeros((2, 900, 3), np.uint8)])  # too narrow to be shown
    found = answers(teacher, [item("a"), damaged, item("b"), item("c", opening="So")])
    assert {uid: isinstance(got, Missed) and got.reason for uid, got in found.items()} == {
        "3/a/plain": False, "3/bad/plain": "refused", "3/b/plain": False, "3/c/plain": "refused",
    }  # fmt: skip


def test_after_the_deadline_everything_is_late_until_the_next_step(make, server):
    said: list[str] = []
    teacher = make("silent", said=said, timeout_seconds=30.0, deadline_seconds=0.5)
    start = time.monotonic()
    assert {got.reason for got in answers(teacher, [item(str(n)) for n in range(40)]).values()} == {"late"}
    assert [got.reason for got in teacher.write(["Write."], STREAM)] == ["late"]
    assert 0.5 < time.monotonic() - start < 3.0
    assert said == [f"!! the teacher at {server.url} is not asked again in this step: "
                    "teacher.deadline_seconds = 0.5 are over"]  # fmt: skip
    teacher.begin(4)
    start = time.monotonic()
    assert {got.reason for got in answers(teacher, [item("n")]).values()} == {"late"}
    assert time.monotonic() - start > 0.5, "a new step has the whole time"


def test_a_server_that_dies_and_comes_back(make, tmp_path):
    """In the middle of its first reply; for the rest of the step nothing is waited for, and later it answers."""
    with Scripted("tests.teacher.scripted", tmp_path / "log") as scripted:
        teacher = make("dies", path=scripted.url)
        first = answers(teacher, [item(str(n)) for n in range(6)])
        assert {got.reason for got in first.values()} == {"unavailable"}
        assert scripted.process is not None and scripted.process.wait(5) == 1
        for step in (4, 5, 6):
            teacher.begin(step)
            start = time.monotonic()
            got = answers(teacher, [item(str(n)) for n in range(40)])
            assert {one.reason for one in got.values()} == {"unavailable"} and time.monotonic() - start < 2.0
        scripted.start()
        teacher.begin(7)
        got = answers(teacher, [item(str(n)) for n in range(6)])
        assert len(got) == 6 and not any(isinstance(one, Missed) for one in got.values())


def test_a_server_that_comes_back_with_another_model_is_not_asked(make, tmp_path):
    """SGLang answers to any name, so that its replies do not show it."""
    scripted, said = Scripted("tests.teacher.scripted", tmp_path / "log"), list[str]()
    teacher = make("fine", path=scripted.url, said=said)
    scripted.name_models("other")
    with scripted:
        got = answers(teacher, [item(str(n)) for n in range(6)])
        assert all(isinstance(one, Missed) for one in got.values()) and not scripted.requests()
        assert "it has other and not fine" in said[-1]
        scripted.name_models("fine")
        teacher.begin(4)
        assert not any(isinstance(one, Missed) for one in answers(teacher, [item("n")]).values())


def test_an_interruption_ends_the_waiting_and_closing_leaves_no_request(make):
    def report(line: str) -> None:
        assert line == "teacher: 0 of 1 questions"
        raise KeyboardInterrupt

    teacher, start = make("silent", report=report, timeout_seconds=30.0), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        answers(teacher, [item()])
    teacher.close()
    assert time.monotonic() - start < 3.0


# ---------------------------------------------------------------- at the start


def test_a_model_that_is_not_served_is_named(make):
    with pytest.raises(ConfigError, match=r"teacher\.model = 'huge' is not served at http.*, which has fine, other"):
        make("other", model="huge")


def test_a_server_that_does_not_list_its_models_is_asked(make, tmp_path):
    said: list[str] = []
    with Scripted("tests.teacher.scripted", tmp_path / "log") as scripted:
        teacher = make("fine", path=scripted.url, said=said)
        assert len(said) == 1 and "did not name its models (status 404" in said[0]
        assert not any(isinstance(one, Missed) for one in answers(teacher, [item("a"), item("b")]).values())


def test_a_server_that_is_away_is_named_and_may_come_later(make):
    said: list[str] = []
    url = f"http://127.0.0.1:{runs.free_port()}/v1"
    teacher = make("fine", said=said, path=url)
    assert len(said) == 1 and f"the teacher at {url} did not name its models" in said[0]
    assert [got.reason for got in answers(teacher, [item()]).values()] == ["unavailable"]


def test_a_server_that_names_itself_after_the_key_does_not_show_it(make, monkeypatch):
    monkeypatch.setenv("ZPPO_TEACHER_API_KEY", "a-secret-key")
    said: list[str] = []
    missed = answers(make("model_key", said=said), [item()])["3/q/plain"]
    assert missed.reason == "malformed" and "a-secret-key" not in f"{missed}{said}" and "***" in missed.detail


def test_a_reply_without_a_model_is_repeated_and_takes_no_server_down(make):
    found = answers(make("nameless", retries=1), [item(str(number)) for number in range(6)])
    assert not any(isinstance(one, Missed) for one in found.values())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"path": "http://h/v1"}, r"teacher\.model is empty"),
        ({"path": "http://a/v1,host:8", "model": "m"}, "'host:8' is not an address"),
        ({"path": "http://a/v1,", "model": "m"}, "'' is not an address"),
        ({"path": "http://me:secret@h/v1", "model": "m"}, "ZPPO_TEACHER_API_KEY"),
        ({"path": "http://h/v1,http://h/v1?key=secret", "model": "m"}, "ZPPO_TEACHER_API_KEY"),
        ({"path": "http://h/v1", "model": "m", "deadline_seconds": 1800.0}, "not below watchdog.host_seconds = 1800"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(keys, words):
    tree = tiny.get_config()
    tree.update_from_flattened_dict({f"teacher.{key}": value for key, value in keys.items()})
    with pytest.raises(ConfigError, match=words) as refused:
        from_config_dict(tree)
    assert "\n" not in str(refused.value) and "secret" not in str(refused.value)
