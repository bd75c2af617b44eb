"""Engines that answer by a script in tests: `sample` and `stream` ask them; any other engine really samples."""

from __future__ import annotations

import pytest

from zppo_jax.rollout import sample as sampler


@pytest.fixture(autouse=True)
def scripts_answer(monkeypatch):
    """An engine with a method `sample` or `stream` answers by it."""
    for name in ("sample", "stream"):
        real = getattr(sampler, name)

        def answer(engine, params, requests, name=name, real=real):
            scripted = getattr(engine, name, None)
            return scripted(params, requests) if scripted else real(engine, params, requests)

        monkeypatch.setattr(sampler, name, answer)
