"""A build from its inputs to dataset.json, in stages: hash, scan, decide, write.

Each stage leaves files in OUT/.build, named or marked by a hash of all that they depend on, so a build that was
interrupted, also by SIGKILL, continues with what is missing and ends with the same bytes. The folder is deleted at the
end; dataset.json, written last, says that a build is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from zppo_jax.data import records
from zppo_jax.data.progress import Progress
from zppo_jax.data.zppo77k import decide, evaluation, inputs, manifest, recipe, shards, units
from zppo_jax.data.zppo77k.evaluation import Evaluation
from zppo_jax.data.zppo77k.inputs import InputFile
from zppo_jax.data.zppo77k.recipe import Settings, SubDataset
from zppo_jax.data.zppo77k.scan import Job
from zppo_jax.data.zppo77k.shards import Format
from zppo_jax.data.zppo77k.units import Facts, Unit
from zppo_jax.data.zppo77k.workers import Hashed, Keys, Scan, Workers, Write
from zppo_jax.errors import ConfigError, RunError
from zppo_jax.files import read_file, sweep, write_atomically

_WORKSPACE = ".build"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to build: the sources ("" for none), the settings, and the folder of the tokenizer."""

    out: Path
    vero: str
    mmfinereason: str
    rows: tuple[SubDataset, ...]
    settings: Settings
    tokenizer: str
    decontaminate: tuple[str, ...] = ()
    kind: Format = "arrayrecord"
    workers: int = 1


class Build:
    """One build: `Build(plan, progress).run()` returns the content of dataset.json."""

    def __init__(self, plan: Plan, progress: Progress):
        self._plan = plan
        self._progress = progress
        self._workspace = plan.out / _WORKSPACE
        self._evaluation_file = self._workspace / "evaluation"

    def run(self) -> dict[str, Any]:
        """Builds, or continues. Raises ConfigError for inputs that are not there or an OUT that is in use, RunError for
        a file that cannot be read, OSError for a disk that cannot be written."""
        files = self._files()
        _require_own(self._plan.out)
        self._workspace.mkdir(parents=True, exist_ok=True)
        job = self._job(files)
        with _locked(self._workspace), Workers(self._plan.workers, job) as workers:
            sweep(self._workspace)
            digests = self._hash(workers, {file.name: file.path for file in files})
            evaluated = self._evaluation(workers)
            read = recipe.as_json(self._plan.rows, self._plan.settings) | self._facts_of_recipe(files, evaluated)
            whole = read | {"format": self._plan.kind}
            finished = manifest.read(self._plan.out)
            if finished is not None:
                return self._same(finished, whole, digests)
            planned = units.plan(files, digests, units.fingerprint(read, sorted(job.in_vero)))
            facts = self._scan(workers, planned)
            decision = decide.decide(facts(), self._plan.rows, self._plan.settings)
            content = manifest.content(decision, self._plan.rows, whole, digests, self._plan.settings.seed)
            notes = self._write(workers, shards.plan(planned, decision.units, decision.rows, self._plan.kind))
            self._finish(content, notes)
        shutil.rmtree(self._workspace, ignore_errors=True)
        return content

    # ---------------------------------------------------------------- inputs

    def _files(self) -> list[InputFile]:
        """All files, Vero's first: the order is the priority among equal rows."""
        plan = self._plan
        vero, other = (tuple(row for row in plan.rows if row.corpus == one) for one in ("vero", "mmfinereason"))
        files = inputs.find_vero(plan.vero, vero, plan.settings.split) if plan.vero and vero else []
        files += inputs.find_mmfinereason(plan.mmfinereason) if plan.mmfinereason and other else []
        if not files:
            raise ConfigError("the recipe reads nothing: give --vero and --mmfinereason, and exclude less")
        if plan.vero and (missing := self._missing(files)):
            self._progress.line(f"not in {plan.vero}, left out: {', '.join(missing)}")
        return files

    def _missing(self, files: Sequence[InputFile]) -> list[str]:
        """The Vero folders of the recipe that have no files."""
        found = {file.upstream for file in files}
        return [row.upstream for row in self._plan.rows if row.corpus == "vero" and row.upstream not in found]

    def _facts_of_recipe(self, files: Sequence[InputFile], evaluated: dict[str, str]) -> dict[str, Any]:
        tokenizer = {"tokenizer_sha256": _tokenizer_digest(self._plan.tokenizer)}
        return {"missing_folders": self._missing(files), "evaluation": evaluated, **tokenizer}

    def _job(self, files: Sequence[InputFile]) -> Job:
        missing = self._missing(files)
        in_vero = {row.name for row in self._plan.rows if row.corpus == "vero" and row.upstream not in missing}
        keys = self._evaluation_file if self._plan.decontaminate else None
        return Job(self._plan.settings, self._plan.rows, frozenset(in_vero), self._plan.tokenizer, keys)

    def _hash(self, workers: Workers, paths: dict[str, str]) -> dict[str, str]:
        """The SHA-256 of each file. Those of files whose size and time have not changed come from an earlier run."""
        memory = self._workspace / "inputs.json"
        known = _read_json(memory)
        states = {name: [path, *inputs.state(path)] for name, path in paths.items()}
        digests = {name: known[name][1] for name in paths if known.get(name, [None])[0] == states[name]}
        missing = [name for name in paths if name not in digests]
        with self._progress.stage("hashing the inputs", "files", len(paths), len(digests)) as advance:
            for number, digest in workers.run([Hashed(paths[name]) for name in missing]):
                digests[missing[number]] = digest
                known[missing[number]] = [states[missing[number]], digest]
                write_atomically(memory, json.dumps(known).encode())
                advance(1)
        return {name: digests[name] for name in paths}

    def _evaluation(self, workers: Workers) -> dict[str, str]:
        """Collects the keys of evaluation data in a file; returns the SHA-256 of what was read."""
        if not self._plan.decontaminate:
            return {}
        paths = evaluation.find(self._plan.decontaminate)
        digests = self._hash(workers, paths)
        targets = [self._workspace / f"{units.fingerprint('evaluation', digests[name])}.keys" for name in paths]
        pairs = zip(paths.values(), targets, strict=True)
        tasks = [Keys(path, target) for path, target in pairs if not target.exists()]
        with self._progress.stage("reading evaluation data", "files", len(paths), len(paths) - len(tasks)) as advance:
            for _ in workers.run(tasks):
                advance(1)
        merged = Evaluation()
        for target in targets:
            merged = merged.merged(Evaluation.load(target))
        merged.save(self._evaluation_file)
        return digests

    # ---------------------------------------------------------------- the two passes

    def _scan(self, workers: Workers, planned: Sequence[Unit]) -> Callable[[], Iterator[Facts]]:
        """Scans what was not scanned; returns a function that yields the facts of all units in order."""
        num_subs = len(self._plan.rows)
        missing = [unit for unit in planned if not _is_whole(Facts.load(self._facts_file(unit)), num_subs)]
        total = sum(unit.num_rows for unit in planned)
        done = total - sum(unit.num_rows for unit in missing)
        with self._progress.stage("reading rows", "rows", total, done) as advance:
            for _, rows in workers.run([Scan(unit, self._facts_file(unit)) for unit in missing]):
                advance(rows)
        return lambda: (_required(Facts.load(self._facts_file(unit)), unit) for unit in planned)

    def _facts_file(self, unit: Unit) -> Path:
        return self._workspace / f"{unit.key}.npz"

    def _write(self, workers: Workers, planned: Sequence[shards.Shard]) -> list[shards.Note]:
        """Writes the shards that are missing; returns the notes of all."""
        out, workspace = self._plan.out, self._workspace
        missing = [shard for shard in planned if shards.finished(out, workspace, shard) is None]
        total = sum(shard.num_rows for shard in planned)
        done = total - sum(shard.num_rows for shard in missing)
        with self._progress.stage("writing", "questions", total, done) as advance:
            for _, rows in workers.run([Write(shard, out, workspace, self._plan.kind) for shard in missing]):
                advance(rows)
        notes = [shards.finished(out, workspace, shard) for shard in planned]
        if None in notes:
            raise RunError(f"a shard in {out} was deleted or changed during the build: run the same command")
        return [note for note in notes if note is not None]

    def _finish(self, content: dict[str, Any], notes: Sequence[shards.Note]) -> None:
        out = self._plan.out
        names = {shards.name_of(number, len(notes), self._plan.kind) for number in range(len(notes))}
        for path in _our_files(out):
            if path.name not in names:
                path.unlink()  # of an interrupted build with other flags
        if self._plan.kind == "arrayrecord":
            records.write_metadata(out, [(note.num_records, note.num_bytes) for note in notes])
        manifest.write(out, content)

    def _same(self, finished: dict[str, Any], whole: dict[str, Any], digests: dict[str, str]) -> dict[str, Any]:
        """The manifest of a complete build, if it is this one."""
        shutil.rmtree(self._workspace)
        written = {key: value for key, value in finished.get("recipe", {}).items() if key != "not_in_recipe"}
        if written != json.loads(json.dumps(whole)) or finished.get("inputs") != digests:
            raise ConfigError(
                f"--out={self._plan.out} holds a complete build with other settings or inputs (see its dataset.json): "
                "delete it, or choose another folder"
            )
        self._progress.line(f"{self._plan.out} is complete already")
        return finished


def _our_files(out: Path) -> list[Path]:
    """The files of a build in its folder, but for dataset.json."""
    patterns = ("*.array_record-?????-of-?????", "train-?????-of-?????.parquet", "features.json", "dataset_info.json")
    return [path for pattern in patterns for path in sorted(out.glob(pattern))]


def _require_own(out: Path) -> None:
    """Raises ConfigError if the folder holds something that is not a build's."""
    if not out.exists() or (out / _WORKSPACE).is_dir() or (out / manifest.NAME).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise ConfigError(f"--out={out} exists and is not a build: choose another folder, or an empty one")


@contextlib.contextmanager
def _locked(workspace: Path) -> Iterator[None]:
    """Keeps a second build out of the folder."""
    lock = filelock.FileLock(workspace / "lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except filelock.Timeout as error:
        raise ConfigError(
            f"--out={workspace.parent} is being built by another process: wait for it, or end it"
        ) from error


def _tokenizer_digest(directory: str) -> str:
    """A hash of the files that decide how many tokens a prompt has."""
    names = ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "tokenizer_config.json")
    return units.fingerprint(
        [[name, inputs.sha256(str(file))] for name in names if (file := Path(directory, name)).is_file()]
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_file(file) or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_whole(facts: Facts | None, num_subs: int) -> bool:
    return facts is not None and len(facts.read) == num_subs


def _required(facts: Facts | None, unit: Unit) -> Facts:
    if facts is None:
        raise RunError(f"the facts of {unit.file.name} were deleted during the build: run the same command")
    return facts
