"""Chat templates are untrusted programs: whatever they do, it ends within seconds, with an error of one line."""

from __future__ import annotations

import datetime
import os
import threading
import time
import warnings

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from zppo_jax.processor import default_chat_template, templates
from zppo_jax.processor.templates import ChatTemplateError, render

QUERY = {"role": "user", "content": "Why?"}
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}" + "{% endfor %}" * 3
HOSTILE = {
    "one instruction for years": ("{{ 10 ** (10 ** 9) }}", "did not end in 3 s of processor time"),
    "a range of 10^9": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "a text of 10^10": ("{{ 'a' * 10**10 }}", "MemoryError"),
    "a text that doubles": (
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "MemoryError",
    ),
    "a width of 10^10": ("{{ 'a' | center(10**10) }}", "MemoryError"),
    "100 million characters": ("{{ 'a' * 10**8 }}", "it writes 100,000,000 characters"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "no Jinja": ("{% for %}", "."),
    "division by zero": ("{{ 1 / 0 }}", "division by zero"),
    "a missing method": ("{{ messages.nothing() }}", "undefined|no attribute|no element"),
    "a refusal of its own": ("{{ raise_exception('not\n me') }}", "not me"),
    "half a surrogate pair": ("{{ '\\ud800' }}", "surrogates not allowed"),
    "Python": ("{{ messages.__class__.__mro__ }}", "unsafe"),
    "files": ("{% include '/etc/passwd' %}", "no loader"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_ends_in_seconds_and_in_one_line(kind):
    template, words = HOSTILE[kind]
    start = time.thread_time()
    with pytest.raises(ChatTemplateError, match=words) as caught:
        render(template, [QUERY])
    assert "\n" not in str(caught.value) and str(caught.value).startswith("the chat template ")
    assert time.thread_time() - start < 1, "the caller waits, it does not work"
    assert render("{{ messages[0].content }}", [QUERY]) == "Why?", "the next template is rendered as ever"


def test_an_endless_template_in_a_thread_ends_and_does_no_harm():
    errors: list[Exception] = []

    def endless() -> None:
        try:
            render(ENDLESS, [QUERY])
        except ChatTemplateError as error:
            errors.append(error)

    thread = threading.Thread(target=endless)
    thread.start()
    assert render("{{ messages[0].role }}", [QUERY]) == "user"
    thread.join(60)
    assert [str(error) for error in errors] == ["the chat template did not end in 3 s of processor time"]


def test_a_killed_child_is_replaced():
    assert render("{{ 1 }}", [QUERY]) == "1"
    process = templates._child._process
    assert process is not None
    process.kill()
    process.wait()
    assert render("{{ 2 }}", [QUERY]) == "2" and templates._child._process is not process


def test_the_child_knows_no_secrets(monkeypatch):
    monkeypatch.setenv("ZPPO_API_KEY", "secret")
    child = templates._Child()
    try:
        child.ask(b'{"chat_template": "", "messages": [], "given": {}}\n')
        assert child._process is not None
        with open(f"/proc/{child._process.pid}/environ") as file:
            assert "secret" not in file.read()
    finally:
        child.close()


def test_a_short_conversation_is_rendered_once():
    template = default_chat_template()
    child, render_again = templates._child, []
    render(template, [QUERY], add_generation_prompt=True)
    templates._child = None  # type: ignore[assignment]  # a render that needs the child now fails
    try:
        render_again.append(render(template, [dict(QUERY)], add_generation_prompt=True))
    finally:
        templates._child = child
    expected, _ = render_jinja_template([[QUERY]], chat_template=template, add_generation_prompt=True)
    assert render_again == expected


def test_a_template_with_a_clock_is_rendered_each_time():
    template = "{{ strftime_now('%f') }}"
    assert len({render(template, [QUERY]) for _ in range(5)}) > 1
    assert render("{{ strftime_now('%Y') }}", [QUERY]) in {
        str(datetime.datetime.now().year + year) for year in (-1, 0, 1)
    }


def test_what_is_no_json_is_shown_by_its_kind_as_in_transformers():
    messages = [{"role": "user", "content": [{"type": "image", "image": object()}]}]
    template = "{{ messages[0].content[0].image }}"
    expected, _ = render_jinja_template([messages], chat_template=template)
    assert render(template, messages) == expected[0] == "<object>"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_a_child_of_its_own():
    render("{{ 3 }}", [QUERY])
    read, write = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # a warning about threads in this process
        pid = os.fork()
    if not pid:  # pragma: no cover
        try:
            os.write(write, render("{{ 4 }}", [QUERY]).encode())
        finally:
            templates._child.close()
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as reply:
        assert reply.read() == "4"
    os.waitpid(pid, 0)
    assert render("{{ 5 }}", [QUERY]) == "5"
