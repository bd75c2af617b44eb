"""The latency of a client while others attack: `python -m tests.serve.under_attack [SECONDS]`.

Starts the command with the shipped model and 1,024 open files, measures /health and a short question in quiet, and
again under all attacks at once: huge texts that a template would render, 20,000 messages, 18 MB of brackets, 25
half-sent bodies, a long name of a model, images that decode for many seconds, 1,100 idle connections, bodies over the
limit, and heads that arrive slowly. All on 127.0.0.1; attackers share the machine at a lower priority, and are counted:
an attack that did not arrive measures nothing.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.serve import hostile

ROOT = Path(__file__).parents[2]
STUDENT = ROOT / "zppo_jax" / "assets" / "tiny" / "student"
QUESTION = hostile.asking("Add 3 and 4.", max_tokens=16, temperature=0)
PAUSE = 0.2
_OPENED_AT_ONCE = 50


def serve() -> tuple[subprocess.Popen[str], int]:
    """Starts the command; returns it and its port."""

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))

    sizes = ("--num_slots=4", "--max_prompt_tokens=512", "--max_new_tokens=32", "--max_queue=64")
    process = subprocess.Popen(
        [sys.executable, "-m", "zppo_jax.serve", f"--model={STUDENT}", "--port=0", *sizes],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=limit_files,
    )  # fmt: skip
    assert process.stdout is not None
    port = next(int(found[1]) for line in process.stdout if (found := re.search(r"serving \S+ on \S+:(\d+)/v1", line)))
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return process, port


def measured(port: int, number: int) -> dict[str, float | int]:
    """Milliseconds of /health and of a short question, in turn; `failed` had no answer or another status."""
    times: dict[str, list[float]] = {"health": [], "text": []}
    failed = 0
    for _ in range(number):
        for name, body, path in (("health", None, "/health"), ("text", QUESTION, "/v1/chat/completions")):
            begin = time.monotonic()
            try:
                failed += hostile.status_of(port, body, path, 30.0) != 200
            except OSError:
                failed += 1
            times[name].append(1000 * (time.monotonic() - begin))
        time.sleep(0.05)
    found: dict[str, float | int] = {"failed": failed}
    for name, values in times.items():
        found |= {f"{name}_median": round(statistics.median(values), 1), f"{name}_worst": round(max(values), 1)}
    return found


# ---------------------------------------------------------------- attacks


def bodies() -> dict[str, bytes]:
    """Whole requests, by name."""
    said = {"role": "assistant", "content": "a", "reasoning_content": "word " * 800_000}
    user = {"role": "user", "content": "hi"}
    return {
        "reasoning": json.dumps({"messages": [user, said]}).encode(),
        "messages": json.dumps({"messages": [user] * 20_000}).encode(),
        "messages again": json.dumps({"messages": [user] * 20_000}).encode(),
        "brackets": b'{"messages": [' + b"[]," * 6_000_000 + b"[]]}",
        "model": hostile.asking("a", model="x" * 10_000_000),
        "too long": b" " * 30_000_000,
        "image": hostile.showing(hostile.slow_jpeg()),
        "image again": hostile.showing(hostile.slow_jpeg()),
    }


def repeat(end: float, name: str, counts: dict[str, int], act: Callable[[], object]) -> None:
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            result = act()
            key = f"{name} {result}" if result else name
            counts[key] = counts.get(key, 0) + 1
        time.sleep(PAUSE)


def hold(port: int, end: float, number: int, num_bytes: int, sent: int) -> None:
    """Keeps `number` half-sent requests, and opens those again that are closed. 0 bytes: nothing is sent."""
    held: list[socket.socket] = []
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            for _ in range(min(number - len(held), _OPENED_AT_ONCE)):
                held.append(
                    hostile.half_sent(port, num_bytes, sent)
                    if num_bytes
                    else socket.create_connection(("127.0.0.1", port), 5)
                )
        held = [connection for connection in held if _is_open(connection)]
        time.sleep(PAUSE)


def _is_open(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return connection.recv(1000) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def trickle(port: int, end: float) -> None:
    connection = socket.create_connection(("127.0.0.1", port), 5)
    for letter in hostile.HEAD.encode() * 100:
        connection.sendall(bytes([letter]))
        time.sleep(PAUSE)
        if time.monotonic() > end:
            return


def attack(port: int, seconds: float, ready: Any, requests: dict[str, bytes]) -> None:
    """Runs all attacks at once, in a separate process."""
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    end = time.monotonic() + seconds
    counts: dict[str, int] = {}
    threads = [
        threading.Thread(
            target=repeat, args=(end, name, counts, lambda body=body: hostile.status_of(port, body)), daemon=True
        )
        for name, body in requests.items()
    ]
    threads += [
        threading.Thread(target=repeat, args=(end, "trickle", counts, lambda: trickle(port, end)), daemon=True)
        for _ in range(10)
    ]
    threads.append(threading.Thread(target=hold, args=(port, end, 25, 20_000_000, 19_000_000), daemon=True))
    threads.append(threading.Thread(target=hold, args=(port, end, 1100, 0, 0), daemon=True))
    for thread in threads:
        thread.start()
    ready.set()
    time.sleep(seconds)
    print("attacks   ", json.dumps(counts), flush=True)
    os._exit(0)


def memory(process: subprocess.Popen[str], name: str) -> int:
    """The server's memory in megabytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) // 1024


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    process, port = serve()
    try:
        measured(port, 5)
        print("quiet    ", json.dumps(measured(port, 20)), flush=True)
        before = memory(process, "VmRSS")
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        attackers = context.Process(target=attack, args=(port, seconds + 10, ready, bodies()))
        attackers.start()
        ready.wait(120)
        time.sleep(3)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            print("attacked ", json.dumps(measured(port, 10)), flush=True)
        print(f"megabytes: {before} in quiet, {memory(process, 'VmHWM')} at most", flush=True)
        attackers.join()
        print("afterwards", json.dumps(measured(port, 20)), flush=True)
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    main()
