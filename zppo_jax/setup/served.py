"""The teacher behind the servers that a configuration names."""

from __future__ import annotations

from collections.abc import Callable

from zppo_jax.config import Config
from zppo_jax.config.addresses import addresses_of
from zppo_jax.errors import ConfigError
from zppo_jax.processor import Processor
from zppo_jax.remote import Found, Requests
from zppo_jax.teacher.served import ROLE, ServedTeacher, Wanted

_REST_SECONDS = 5.0
"""How long a server that is down is left alone at first; doubled each time, to five minutes."""


def served_teacher(
    config: Config, processor: Processor, report: Callable[[str], None] | None, say: Callable[[str], None]
) -> ServedTeacher:
    """Makes the teacher of `teacher.path=http://...`, after a look at the names of the servers' models.

    `processor` is the student's: the teacher sees the images as that shows them. A server that cannot be reached now is
    named with `say`, and may come later. Raises ConfigError if one has no model `teacher.model`, or refuses the key.
    """
    chosen = config.teacher
    wanted = Wanted(
        name=chosen.model,
        num_rollouts=chosen.num_rollouts,
        temperature=chosen.temperature,
        top_p=chosen.top_p,
        max_tokens=config.rollout.max_new_tokens,
        text_max_tokens=chosen.compress.max_tokens,
        thinking=config.prompt.enable_thinking,
    )
    requests = Requests(
        addresses_of(chosen.path),
        ROLE,
        concurrency=chosen.concurrency,
        retries=chosen.retries,
        timeout_seconds=chosen.timeout_seconds,
        max_bytes=wanted.max_bytes,
        report=say,
        rest_seconds=_REST_SECONDS,
        longest_pause=chosen.deadline_seconds,
        model=chosen.model,
    )
    try:
        for found in requests.check():
            _check(found, chosen.model, say)
    except BaseException:
        requests.close()
        raise
    return ServedTeacher(requests, wanted, processor.config, chosen.deadline_seconds, report)


def _check(found: Found, model: str, say: Callable[[str], None]) -> None:
    if found.fault is not None:
        if found.fault.wants_key:
            raise ConfigError(f"the teacher at {found.url} wants a key ({found.fault}): set {ROLE.key_variable} to it")
        say(f"!! the teacher at {found.url} did not name its models ({found.fault}): it is asked all the same")
    elif model not in found.names:
        raise ConfigError(
            f"teacher.model = {model!r} is not served at {found.url}, which has {', '.join(found.names[:8])}: name one "
            "of these"
        )
