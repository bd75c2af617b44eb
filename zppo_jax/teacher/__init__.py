"""The frozen teacher: answers hard questions and compresses candidates. Its text enters prompts, never a gradient."""

from zppo_jax.teacher.local import LocalTeacher, Teacher

__all__ = ["LocalTeacher", "Teacher"]
