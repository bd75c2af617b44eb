"""Models of a configuration with their processors, from Hugging Face directories."""

from __future__ import annotations

from pathlib import Path

from zppo_jax import parallel
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.compilation import Compiler
from zppo_jax.config import Config
from zppo_jax.data.processing import processor_settings
from zppo_jax.errors import ConfigError
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import config_keys, hf
from zppo_jax.models.qwen3_5.hf.quantization import Weights
from zppo_jax.processor import Processor


def load(
    config: Config,
    key: str,
    path: Path,
    compiler: Compiler,
    heartbeat: Heartbeat,
    weights: Weights = "dequantised",
) -> tuple[qwen3_5.Model, Processor]:
    """Loads model and processor of a Hugging Face directory; raises ConfigError, naming the key, if it is not one."""
    try:
        # The compiler's mesh: with several hosts it is not the one in use.
        with parallel.use(compiler.mesh), heartbeat.during(f"loading {key}={path}") as report:
            model = qwen3_5.load(path, config.model.dtype, compiler.mesh, report, weights)
        return model, load_processor(config, path)
    except (OSError, ValueError) as error:
        raise _fault(key, path, error) from error


def read_architecture(key: str, path: Path) -> qwen3_5.Config:
    """The architecture of the model in a Hugging Face directory, without its weights. Raises ConfigError as `load`."""
    try:
        return configs.from_directory(hf.resolve(path))
    except (OSError, ValueError) as error:
        raise _fault(key, path, error) from error


def _fault(key: str, path: Path, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())
    return ConfigError(
        f"{key} = {str(path)!r} does not load ({reason[:300]}): name a directory with config.json, "
        "*.safetensors and tokenizer.json of a Qwen3.5 checkpoint"
    )


def float8_kernels(config: Config, directory: Path, model: qwen3_5.Config) -> frozenset[str]:
    """The paths of the teacher's kernels that stay FP8: none if the directory has none, or does not load."""
    try:
        return hf.float8_kernels(directory, model) if config.teacher.weights == "as_stored" else frozenset()
    except (OSError, ValueError):
        return frozenset()


def load_processor(config: Config, path: Path) -> Processor:
    """Loads the processor of a directory with the settings of the configuration. Raises OSError or ValueError."""
    directory = hf.resolve(path)
    settings = processor_settings(config.prompt)
    processor = Processor.from_directory(directory, enable_thinking=config.prompt.enable_thinking, **settings)
    config_keys.check_processor(configs.from_directory(directory).vision, processor.config)
    return processor
