"""python -m zppo_jax.generate --model=DIR --prompt=TEXT: responses of a model, printed as they finish."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from absl import flags

from zppo_jax import command
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.command.terminal import harmless
from zppo_jax.errors import ConfigError

_EXAMPLE = "python -m zppo_jax.generate --model=DIR --prompt='What do you see?' --image=a.png"
_DTYPES = ("float32", "bfloat16")

_HELP = f"""\
Samples responses of a Qwen3.5 vision-language model and prints each as it finishes.

  {_EXAMPLE}

The prompt is prefilled once for all its responses. Standard output has only the responses, with their reason to end
(stop, or length: --max_new_tokens was reached) and log-probability (of the untruncated distribution at the
temperature). Messages about compiling go to standard error, a progress line to a terminal. The first run with a new
size of prompt compiles (programs are kept in ~/.cache/zppo_jax). Ctrl-C stops within some tokens.

Flags:
  --model=DIRECTORY        a Hugging Face directory (also an export of a run), or OWNER/NAME of the Hub
  --prompt=TEXT            what to ask; - reads standard input
  --system=TEXT            the system message
  --image=FILE             shown before the prompt; may be given several times
  --num_samples=8          how many responses
  --max_new_tokens=512     most tokens of each
  --temperature=1.0        0 takes the likeliest token
  --top_p=1.0 --top_k=0 --min_p=0.0     truncate the distribution (these values do not)
  --presence_penalty=0.0 --repetition_penalty=1.0     against repetition (these values do nothing)
  --stop=TEXT              ends a response before this text; may be given several times
  --seed=0                 the same seed gives the same responses
  --[no]enable_thinking    whether the prompt opens <think>; without it, the chat template's default
  --dtype=NAME             {" or ".join(_DTYPES)}; without it float32 on a CPU and bfloat16 elsewhere
  --num_slots=16           how many responses are decoded at the same time
{command.device_help(27)}
  --max_pixels=N           larger images are shrunk to N pixels (at most 1048576 without it)
  --json                   one JSON object per line: index, text, finish_reason, num_tokens, logprob, token_ids,
  logprobs

Examples:
  python -m zppo_jax.generate --model=zppo_jax/assets/tiny/student --image=two_digits.png \\
    --prompt='Add the digits. Answer in \\boxed{{}}.' --num_samples=4
  python -m zppo_jax.generate --model=Qwen/Qwen3.5-0.8B --prompt='Name a prime.' --temperature=0 --num_samples=1
  python -m zppo_jax.generate --model=exports/9b --image=a.png --image=b.png --prompt='What changed?' --json > out.jsonl
  python -m zppo_jax.generate --model=exports/9b --prompt=- --top_p=0.95 --top_k=20 --temperature=0.6 < question.txt
"""

# Separate flags: absl's global ones belong to zppo_jax.main and to the libraries.
_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "directory", flag_values=_FLAGS)
_PROMPT = flags.DEFINE_string("prompt", None, "what to ask", flag_values=_FLAGS)
_SYSTEM = flags.DEFINE_string("system", None, "system message", flag_values=_FLAGS)
_IMAGES = flags.DEFINE_multi_string("image", [], "image file", flag_values=_FLAGS)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 8, "responses", lower_bound=1, flag_values=_FLAGS)
_MAX_NEW = flags.DEFINE_integer("max_new_tokens", 512, "most tokens", lower_bound=1, flag_values=_FLAGS)
_STOPS = flags.DEFINE_multi_string("stop", [], "ends a response", flag_values=_FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "of the random numbers", flag_values=_FLAGS)
_THINKING = flags.DEFINE_boolean("enable_thinking", None, "open <think>", flag_values=_FLAGS)
_DTYPE = flags.DEFINE_enum("dtype", None, _DTYPES, "of the weights", flag_values=_FLAGS)
_SLOTS = flags.DEFINE_integer("num_slots", 16, "at the same time", lower_bound=1, flag_values=_FLAGS)
_PIXELS = flags.DEFINE_integer("max_pixels", None, "of an image", lower_bound=1, flag_values=_FLAGS)
_DEVICES = command.device_flags(_FLAGS)
_JSON = flags.DEFINE_boolean("json", False, "JSON lines", flag_values=_FLAGS)
_SAMPLING = (
    flags.DEFINE_float("temperature", 1.0, "0: greedy", flag_values=_FLAGS),
    flags.DEFINE_float("top_p", 1.0, "nucleus", flag_values=_FLAGS),
    flags.DEFINE_integer("top_k", 0, "likeliest tokens", flag_values=_FLAGS),
    flags.DEFINE_float("min_p", 0.0, "share of the likeliest", flag_values=_FLAGS),
    flags.DEFINE_float("presence_penalty", 0.0, "of said tokens", flag_values=_FLAGS),
    flags.DEFINE_float("repetition_penalty", 1.0, "of seen tokens", flag_values=_FLAGS),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 all printed, 1 the model computes no numbers, 2 a mistake on the command line,
    130 Ctrl-C."""
    command.run(argv, _HELP, _run)


def _run(argv: Sequence[str]) -> None:
    parse(argv)
    try:
        # Compilation and progress are never mixed with responses that go to a file or a pipe.
        target = sys.stdout if sys.stdout.isatty() and not _JSON.value else sys.stderr
        with _ctrl_c(), Heartbeat(target) as heartbeat:
            _generate(target, heartbeat)
    except KeyboardInterrupt:
        print("zppo_jax: stopped; the responses above are whole", file=sys.stderr)
        _exit_at_once(130)
    except BrokenPipeError:  # `| head` has seen enough
        _exit_at_once(1)


def parse(argv: Sequence[str]) -> None:
    """Reads the flags; raises ConfigError in one line on any mistake that shows without jax."""
    command.read(_FLAGS, argv, "zppo_jax.generate", _EXAMPLE, (_MODEL, _PROMPT))
    for name in _IMAGES.value:
        if not Path(name).is_file():
            raise ConfigError(f"--image={name}: there is no such file")
    if "" in _STOPS.value:
        raise ConfigError("--stop= is empty: give the text that ends a response, or leave the flag out")


def _generate(target: TextIO, heartbeat: Heartbeat) -> None:
    """Loads the model that the flags name, samples, prints; progress goes to `target`."""
    with heartbeat.during("starting: importing jax"):
        messages, images = _conversation()
        # Imports jax, which a mistake on the command line should not wait for.
        from zppo_jax import compilation, parallel
        from zppo_jax.generate import model, sampling
        from zppo_jax.run.console import RunConsole

        compilation.use_cache()
        compilation.keep_memory()
    try:
        given: dict[str, Any] = {flag.name: flag.value for flag in _SAMPLING}
        settings = sampling.Sampling(**given)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    with heartbeat.during(f"loading {_MODEL.value}") as report:
        loaded = model.load(_MODEL.value or "", _DTYPE.value, _THINKING.value, _PIXELS.value, _DEVICES(), report)
    try:
        features = loaded.processor.chat_features(messages, images)
    except ValueError as error:
        raise ConfigError(f"the prompt cannot be used ({error})") from error
    request = sampling.GenerateRequest(
        features, _NUM_SAMPLES.value, settings, _SEED.value, _MAX_NEW.value, tuple(_STOPS.value), _SLOTS.value
    )
    with (
        RunConsole(0, file=target, heartbeat=heartbeat) as console,
        parallel.use(loaded.mesh),
        compilation.compiler(console.compiling, loaded.mesh) as compiler,
        heartbeat.during("sampling"),
    ):
        heartbeat.watch(compiler.standing)
        for line in loaded.describe():
            console.message(line)
        progress = _unless_interrupted(console.status)
        responses = sampling.responses(loaded, request, compiler, progress, console.message)
        for response in _finite(responses):
            text = response.as_json() if _JSON.value else response.as_text(request.num_samples)
            if target is sys.stdout:
                console.message(harmless(text))
            else:
                print(text, flush=True)


def _finite(responses: Iterator[Any]) -> Iterator[Any]:
    """Passes responses on; exits with status 1 if the model computes values that are not finite."""
    from zppo_jax.generate.text import NotFiniteError

    try:
        yield from responses
    except NotFiniteError as error:
        command.exit_with(error, 1)


_interrupted = threading.Event()


@contextlib.contextmanager
def _ctrl_c() -> Iterator[None]:
    """Sets a flag at Ctrl-C as well, because a KeyboardInterrupt inside a callback of a library is lost."""

    def handle(number: int, frame: object) -> None:
        _interrupted.set()
        raise KeyboardInterrupt

    _interrupted.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _unless_interrupted(report: Callable[[str], None]) -> Callable[[str], None]:
    """Wraps `report`, which is called after every chunk, so that it raises a KeyboardInterrupt that a library lost."""

    def interruptible(line: str) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        report(line)

    return interruptible


def _conversation() -> tuple[list[dict[str, Any]], list[Any]]:
    """The messages and their images, decoded."""
    from zppo_jax.processor import load_image

    try:
        images = [load_image(name) for name in _IMAGES.value]
    except ValueError as error:
        raise ConfigError(f"--image={error}") from error
    text = sys.stdin.read() if _PROMPT.value == "-" else _PROMPT.value
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    system = [{"role": "system", "content": _SYSTEM.value}] if _SYSTEM.value else []
    return [*system, {"role": "user", "content": content}], images


def _exit_at_once(status: int) -> NoReturn:
    """Exits at once; sys.exit would wait for a program that is still compiling, which may take minutes."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
