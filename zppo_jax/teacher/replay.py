"""A teacher whose exchanges are recorded, and a teacher that is a recording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.errors import ConfigError
from zppo_jax.keys import RandomStream
from zppo_jax.teacher.recording import Recording
from zppo_jax.teacher.teacher import Teacher
from zppo_jax.types import Answer, Missed, Prompt


class Recorder:
    """A teacher that asks `teacher` what is not in the recording, and adds what it gives.

    With `answers` False only its texts are kept: they are the same whenever they are asked for.
    """

    def __init__(self, teacher: Teacher, recording: Recording, answers: bool = True) -> None:
        self.teacher, self.recording, self._keeps_answers = teacher, recording, answers

    @property
    def name(self) -> str:
        return self.teacher.name

    @property
    def works_beside(self) -> bool:
        return self.teacher.works_beside

    def begin(self, step: int) -> None:
        self.teacher.begin(step)

    def ahead(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> None:
        open_items = [item for item in items if self._kept(item, stream) is None]
        if open_items:
            self.teacher.ahead(open_items, stream)

    def answer(
        self, items: Sequence[EncodedPrompt], stream: RandomStream
    ) -> Iterator[tuple[str, Sequence[Answer] | Missed]]:
        """Yields the recorded answers first."""
        open_items = []
        for item in items:
            kept = self._kept(item, stream)
            if kept is None:
                open_items.append(item)
            else:
                yield item.prompt.uid, kept
        prompts = {item.prompt.uid: item.prompt for item in open_items}
        for uid, got in self.teacher.answer(open_items, stream) if open_items else ():
            if self._keeps_answers:
                self.recording.add_answers(prompts[uid], stream.step, got)
            yield uid, got

    def _kept(self, item: EncodedPrompt, stream: RandomStream) -> tuple[Answer, ...] | None:
        kept = self.recording.answers(item.prompt, stream.step) if self._keeps_answers else None
        return None if isinstance(kept, Missed) else kept

    def write(self, asks: Sequence[str], stream: RandomStream) -> list[str | Missed]:
        found = {ask: self.recording.text(ask, stream.step) for ask in asks}
        missing = [ask for ask, text in found.items() if text is None or isinstance(text, Missed)]
        written = self.teacher.write(missing, stream) if missing else ()
        for ask, got in zip(missing, written, strict=True):
            self.recording.add_text(ask, stream.step, got)
            found[ask] = got
        return [text for text in map(found.__getitem__, asks) if text is not None]

    def close(self) -> None:
        self.teacher.close()
        self.recording.close()


class RecordedTeacher:
    """A recording that answers as the recorded teacher did, the same in every repetition of its run.

    A run with another seed takes answers that were sampled beforehand. What the recording lacks is missing. Raises
    ConfigError if it can have no answer for a run of this `seed`.
    """

    def __init__(self, recording: Recording, num_rollouts: int, seed: int) -> None:
        self.recording, self._count = recording, num_rollouts
        self._same_run = recording.about.get("seed") == seed
        if not self._same_run and not recording.has_precomputed:
            raise ConfigError(
                f"teacher.path = recorded: holds the answers to a run with seed={recording.about.get('seed')}, and "
                f"this run has seed={seed}: repeat the run that was recorded, or sample answers beforehand with "
                "python -m zppo_jax.teacher.precompute"
            )

    works_beside = False  # an answer takes no time

    @property
    def name(self) -> str:
        return str(self.recording.about.get("model", ""))

    def begin(self, step: int) -> None:
        """Does nothing: a recording is always there."""

    def ahead(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> None:
        """Does nothing."""

    def answer(
        self, items: Sequence[EncodedPrompt], stream: RandomStream
    ) -> Iterator[tuple[str, Sequence[Answer] | Missed]]:
        for item in items:
            yield item.prompt.uid, self._answers(item.prompt, stream)

    def _answers(self, prompt: Prompt, stream: RandomStream) -> tuple[Answer, ...] | Missed:
        found = self.recording.answers(prompt, stream.step) if self._same_run else None
        return found or self.recording.precomputed(prompt, self._count, stream) or Missed("missing")

    def write(self, asks: Sequence[str], stream: RandomStream) -> list[str | Missed]:
        return [self._text(ask, stream.step) for ask in asks]

    def _text(self, ask: str, step: int) -> str | Missed:
        found = self.recording.text(ask, step) if self._same_run else None
        return Missed("missing") if found is None else found

    def close(self) -> None:
        self.recording.close()
