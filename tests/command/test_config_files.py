"""Configuration files from any folder: the real command, run outside the repository."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zppo_jax import command
from zppo_jax.errors import ConfigError

ROOT = Path(__file__).parents[2]
LIKE_TINY = (
    "def get_config(method='zppo'):\n    config = tiny.get_config(method)\n    config.seed = 77\n    return config\n"
)


def seed_of(file: Path | str, cwd: Path, packages: Path = ROOT) -> str:
    """The seed that the command line reads from the file, or the one line of a refusal; `packages` is where zppo_jax
    is.

    The package is found as in an editable installation: its folder is known, that of the repository is not.
    """
    finder = f"""
import importlib.util, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "zppo_jax":
            return importlib.util.spec_from_file_location(name, {str(packages / "zppo_jax" / "__init__.py")!r})
sys.meta_path.insert(0, Finder())
from absl import flags
from zppo_jax import main
main._parse_or_exit(sys.argv)
print(flags.FLAGS.config.seed, flags.FLAGS.config.num_steps)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", finder, f"--config={file}", "--config.num_steps=3", "--workdir=x"],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if done.returncode:
        assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr
    seed, num_steps = done.stdout.split()
    assert num_steps == "3", "keys are changed as ever"
    return seed


@pytest.mark.parametrize(
    "words",
    [
        "from configs import tiny\n",
        "import configs.tiny\nfrom configs import tiny\n",
        "from configs import common\nfrom configs import tiny\n",
        "import beside\ntiny = beside.tiny\n",
    ],
)
@pytest.mark.parametrize("folder", ["", "configs"])
def test_a_file_anywhere_imports_the_repositorys(tmp_path, words, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "my.py").write_text(words + LIKE_TINY)
    (tmp_path / folder / "beside.py").write_text("from configs import tiny")
    away = tmp_path / "away"
    away.mkdir()
    assert seed_of(tmp_path / folder / "my.py", away) == "77"
    assert seed_of(Path(folder) / "my.py", tmp_path) == "77", "by a relative name"
    assert seed_of(tmp_path / folder / "my.py", ROOT) == "77", "in the repository"


def test_neighbours_come_before_the_repositorys(tmp_path):
    """If their folder is called configs, with an __init__.py or without."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "tiny.py").write_text("from zppo_jax.config import ConfigTree\ndef get_config(method): 1 / 0\n")
    (folder / "mine.py").write_text("from configs import tiny\n" + LIKE_TINY)
    assert "division by zero" in seed_of(folder / "mine.py", tmp_path)
    assert "division by zero" in seed_of(folder / "mine.py", ROOT)
    (folder / "__init__.py").touch()
    assert "division by zero" in seed_of(folder / "mine.py", ROOT)
    (folder / "tiny.py").unlink()
    assert "cannot import name 'tiny' from 'configs'" in seed_of(folder / "mine.py", ROOT), "the package is theirs"


def test_a_package_of_the_current_folder_is_taken_instead(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.py").write_text("def get_config(method): 1 / 0\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "my.py").write_text("from configs import tiny\n" + LIKE_TINY)
    assert seed_of(other / "my.py", tmp_path) == "77", "a folder of other files is not a package"
    (tmp_path / "configs" / "__init__.py").touch()
    assert "division by zero" in seed_of(other / "my.py", tmp_path)


@pytest.mark.parametrize("words", ["import beside\n", "import beside, nothing\n"])
def test_files_beside_it_are_found_no_longer_than_it_is_read(tmp_path, words):
    """A types.py there must not be what a library imports later."""
    (tmp_path / "beside.py").touch()
    (tmp_path / "my.py").write_text(words + "from configs import tiny\n" + LIKE_TINY)
    before = list(sys.path)
    with contextlib.suppress(ConfigError):
        assert command.load_config(str(tmp_path / "my.py")).seed == 77
    assert sys.path == before


def test_the_repositorys_files_are_named_from_any_folder(tmp_path):
    said = seed_of("configs/tniy.py", tmp_path)
    assert f"there is no file 'configs/tniy.py'; try {ROOT / 'configs' / '0p8b.py'}, " in said


def test_without_the_repository_the_mistake_says_where_it_is(tmp_path):
    """As a wheel installs the package."""
    packages = tmp_path / "site-packages"
    for part in ("__init__.py", "main.py", "command", "errors.py", "files.py", "run", "types.py", "config", "zppo"):
        source, target = ROOT / "zppo_jax" / part, packages / "zppo_jax" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
    (tmp_path / "my.py").write_text("from configs import tiny\n" + LIKE_TINY)
    fix = "configs/ is not installed with the package: clone the repository and set PYTHONPATH to the clone\n"
    said = seed_of(tmp_path / "my.py", tmp_path, packages)
    assert said.endswith(f"ModuleNotFoundError: No module named 'configs'; {fix}")
    assert seed_of("other/tiny.py", packages, packages).endswith(f"try a file of the repository's configs/; {fix}")
