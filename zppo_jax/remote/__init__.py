"""Models behind a network: OpenAI-compatible endpoints, their health, and many requests to them at once."""

from zppo_jax.remote.asking import Body, Found, Requests
from zppo_jax.remote.endpoint import Role
from zppo_jax.remote.health import MAX_FAILURES
from zppo_jax.remote.unanswered import Unanswered
from zppo_jax.remote.waiting import Asker, Waiting

__all__ = ["MAX_FAILURES", "Asker", "Body", "Found", "Requests", "Role", "Unanswered", "Waiting"]
