"""python -m zppo_jax.serve --model=DIR: an OpenAI-compatible server."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from zppo_jax import command
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.errors import ConfigError

_EXAMPLE = "python -m zppo_jax.serve --model=DIR --port=8000"
_DTYPES = ("float32", "bfloat16")
_KEY_VARIABLE = "ZPPO_API_KEY"

_HELP = f"""\
Serves a Qwen3.5 vision-language model as OpenAI does: /v1/chat/completions (also streamed), /v1/models, /health.

  {_EXAMPLE}

Everything is compiled before the first request (programs are kept in ~/.cache/zppo_jax). Needs pip install '.[serve]'.

A request may hold: messages (text, and image_url as a data URI), n, temperature, top_p, top_k, min_p,
presence_penalty, repetition_penalty, max_tokens or max_completion_tokens, stop, seed, logprobs (of the untruncated
distribution at the temperature), stream, stream_options.include_usage, chat_template_kwargs.enable_thinking. Any other
field that would change the answer (tools, response_format, logit_bias, ...) is refused with status 400. With thinking,
the content begins inside the <think> that the prompt opened.

Flags:
  --model=DIRECTORY           a Hugging Face directory (also an export of a run), or OWNER/NAME of the Hub
  --served_model_name=NAME    what clients call it; the directory's name without it
  --host=127.0.0.1            who may connect: only this machine; 0.0.0.0 is everybody (then give a key)
  --port=8000                 0 takes a free one
  --api_key=KEY               what clients must send; {_KEY_VARIABLE} in the environment does the same, and hides it
                              from the list of processes
  --num_slots=16              how many responses are decoded at the same time
{command.device_help(30)}
  --prompts_per_call=1        how many prompts are prefilled together
  --max_prompt_tokens=2048    longest prompt, image tokens included
  --max_new_tokens=1024       longest response; a request that asks for more is refused
  --max_queue=256             responses that may wait or run; more are answered with status 429
  --max_images=4              of a request
  --max_pixels=262144         to which an image is shrunk
  --max_image_pixels=16777216 an image that comes with more is refused before it is decoded
  --max_body_megabytes=20     a larger request is refused; of all requests together, eight times as much is in memory
  --max_request_seconds=30    from the first byte of a request until it has come, its images are decoded and its text is
                              read; one that takes longer is refused
  --dtype=NAME                {" or ".join(_DTYPES)}; without it float32 on a CPU and bfloat16 elsewhere
  --[no]enable_thinking       whether prompts open <think>; without it, the chat template's default

Examples:
  python -m zppo_jax.serve --model=zppo_jax/assets/tiny/student --max_prompt_tokens=512 --max_new_tokens=128
  python -m zppo_jax.serve --model=Qwen/Qwen3.5-0.8B --num_slots=64 --max_new_tokens=8192
  {_KEY_VARIABLE}=$(openssl rand -hex 16) python -m zppo_jax.serve --model=exports/9b --host=0.0.0.0

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"messages": [{{"role": "user", "content": "Name a prime."}}], "max_tokens": 64}}'
  lm_eval --model local-chat-completions --apply_chat_template --tasks gsm8k \\
    --model_args model=NAME,base_url=http://127.0.0.1:8000/v1/chat/completions,num_concurrent=16
"""

# Separate flags: absl's global ones belong to zppo_jax.main and to the libraries.
_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "directory", flag_values=_FLAGS)
_NAME = flags.DEFINE_string("served_model_name", None, "for clients", flag_values=_FLAGS)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address", flag_values=_FLAGS)
_PORT = flags.DEFINE_integer("port", 8000, "port", lower_bound=0, upper_bound=65535, flag_values=_FLAGS)
_KEY = flags.DEFINE_string("api_key", None, "of clients", flag_values=_FLAGS)
_DTYPE = flags.DEFINE_enum("dtype", None, _DTYPES, "of the weights", flag_values=_FLAGS)
_DEVICES = command.device_flags(_FLAGS)
_THINKING = flags.DEFINE_boolean("enable_thinking", None, "open <think>", flag_values=_FLAGS)


def _count(name: str, default: int, smallest: int = 1) -> flags.FlagHolder[Any]:
    return flags.DEFINE_integer(name, default, name, lower_bound=smallest, flag_values=_FLAGS)


_SLOTS = _count("num_slots", 16)
_PROMPTS = _count("prompts_per_call", 1)
_MAX_PROMPT = _count("max_prompt_tokens", 2048, smallest=16)
_MAX_NEW = _count("max_new_tokens", 1024)
_MAX_QUEUE = _count("max_queue", 256)
_MAX_IMAGES = _count("max_images", 4)
_MAX_PIXELS = _count("max_pixels", 262_144)
_MAX_IMAGE_PIXELS = _count("max_image_pixels", 16_777_216)
_MAX_BODY = _count("max_body_megabytes", 20)
_SECONDS = _count("max_request_seconds", 30)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 ended by Ctrl-C, 2 a mistake on the command line, 130 Ctrl-C before it was ready."""
    command.run(argv, _HELP, _run)


def _run(argv: Sequence[str]) -> None:
    parse(argv)
    try:
        with Heartbeat(sys.stdout) as heartbeat:
            _serve(heartbeat)
    except KeyboardInterrupt:
        print("zppo_jax: stopped", file=sys.stderr, flush=True)
        os._exit(130)  # sys.exit would wait for a program that is still compiling, which may take minutes


def parse(argv: Sequence[str]) -> None:
    """Reads the flags; raises ConfigError in one line on any mistake that shows without jax."""
    command.read(_FLAGS, argv, "zppo_jax.serve", _EXAMPLE, (_MODEL,))
    if _KEY.value is not None and not _KEY.value.strip():
        raise ConfigError("--api_key= is empty: give a key, or leave the flag out")


def _serve(heartbeat: Heartbeat) -> None:
    """Loads the model, compiles, and answers until Ctrl-C."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"the server needs {error.name}: pip install 'zppo-jax[serve]'") from error
    with _listening() as listener:
        with heartbeat.during("starting: importing jax"):
            # Imported here: a mistake on the command line should not wait for it.
            from zppo_jax import compilation, parallel
            from zppo_jax.generate import model
            from zppo_jax.run.console import RunConsole
            from zppo_jax.serve import connections, start

            options = _options()
            start.check(options)
            compilation.use_cache()
            compilation.keep_memory()
        with heartbeat.during(f"loading {_MODEL.value}") as report:
            chosen = (_DTYPE.value, _THINKING.value, _MAX_PIXELS.value, _DEVICES())
            loaded = model.load(_MODEL.value or "", *chosen, report)
        console = RunConsole(0, heartbeat=heartbeat)
        with parallel.use(loaded.mesh), compilation.compiler(console.compiling, loaded.mesh) as compiler:
            heartbeat.watch(compiler.standing)
            with console, heartbeat.during("making the programs"):
                server = start.make_server(loaded, options, compiler, console.message)
            host, port = listener.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            for line in (*loaded.describe(), *start.describe(server, address)):
                console.message(line)
            if options.api_key is None and not _is_loopback(host):
                console.message("everybody who reaches this address may use it: give --api_key")
            settings = connections.configuration(server, log_level="warning", timeout_graceful_shutdown=5)
            with contextlib.suppress(KeyboardInterrupt):  # uvicorn has finished its answers, and raises it again
                uvicorn.Server(settings).run(sockets=[listener])
            server.close()


def _listening() -> socket.socket:
    """Binds the port before anything is loaded."""
    family = socket.AF_INET6 if ":" in _HOST.value else socket.AF_INET
    try:
        return socket.create_server((_HOST.value, _PORT.value), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).split(" (")[0]  # Python adds the address in brackets
        raise ConfigError(
            f"--host={_HOST.value} --port={_PORT.value}: {reason}; choose another, or --port=0"
        ) from error


def _options() -> Any:
    from zppo_jax.serve.limits import Limits
    from zppo_jax.serve.start import Options

    hidden = os.environ.pop(_KEY_VARIABLE, None)  # so that no child process of a library inherits it
    key = _KEY.value if _KEY.value is not None else hidden
    return Options(
        name=_NAME.value or Path(_MODEL.value or "").resolve().name,
        num_slots=_SLOTS.value,
        prompts_per_call=_PROMPTS.value,
        max_prompt_tokens=_MAX_PROMPT.value,
        max_new_tokens=_MAX_NEW.value,
        max_queue=_MAX_QUEUE.value,
        api_key=key.strip() if key else None,
        max_image_pixels=_MAX_IMAGE_PIXELS.value,
        limits=Limits(_MAX_BODY.value * 2**20, _MAX_IMAGES.value, _SECONDS.value),
    )


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


if __name__ == "__main__":
    main()
