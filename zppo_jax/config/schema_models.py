"""The keys about the models of a run, declared as in schema.py: student, teacher, judge, and where they work."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from zppo_jax.config.setting import Setting


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: Annotated[int, Setting("copies of the parameters; -1: all remaining devices", minimum=-1, may_change=True)]
    fsdp: Annotated[
        int,
        Setting("shards of the parameters' width; -1: all remaining devices", minimum=-1, may_change=True),
    ]
    tensor: Annotated[
        int,
        Setting("shards of heads and inner widths; -1: all remaining devices", minimum=-1, may_change=True),
    ]


@dataclasses.dataclass(frozen=True)
class DecodingMeshConfig(MeshConfig):
    tensor: Annotated[
        int,
        Setting(
            "shards of heads and inner widths; -1: all remaining devices; 0: as many as divide the key-value heads",
            minimum=-1,
            may_change=True,
        ),
    ]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    path: Annotated[
        str, Setting("Hugging Face directory or hub id of the student; empty: the warm start shipped with the package")
    ]
    dtype: Annotated[str, Setting("dtype of the parameters and of the computation", choices=("float32", "bfloat16"))]
    remat: Annotated[
        str,
        Setting("what the backward pass recomputes", choices=("none", "group", "block"), may_change=True),
    ]


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    enabled: Annotated[bool, Setting("let the teacher shorten the candidates shown in BCQ and NCQ prompts")]
    max_tokens: Annotated[int, Setting("longest candidate in a prompt, in tokens", minimum=1)]


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    path: Annotated[
        str,
        Setting(
            "directory or hub id, http://HOST:PORT/v1[,...] of servers, or recorded:DIR; empty: the shipped teacher",
            may_change=True,
        ),
    ]
    record: Annotated[str, Setting("folder to record all exchanges with the teacher in; empty: none", may_change=True)]
    model: Annotated[str, Setting("name of the model at the servers of teacher.path", may_change=True)]
    concurrency: Annotated[int, Setting("requests to the servers at once from each host", minimum=1, may_change=True)]
    timeout_seconds: Annotated[float, Setting("longest time of a request to a server", above=0, may_change=True)]
    retries: Annotated[int, Setting("further attempts after a request failed", minimum=0, may_change=True)]
    deadline_seconds: Annotated[
        float,
        Setting(
            "longest time that a step waits for the servers; what is open then is missed", above=0, may_change=True
        ),
    ]
    num_rollouts: Annotated[int, Setting("teacher rollouts per hard question (G_T)", minimum=1)]
    scope: Annotated[str, Setting("which hard questions the teacher answers", choices=("capped", "all_hard"))]
    temperature: Annotated[float, Setting("sampling temperature of the teacher; 0: greedy", minimum=0)]
    top_p: Annotated[float, Setting("nucleus of the teacher; 1: off", above=0, maximum=1)]
    weights: Annotated[
        str,
        Setting(
            "FP8 weights of a teacher in this process stay FP8, or become model.dtype",
            choices=("as_stored", "dequantised"),
        ),
    ]
    devices: Annotated[
        int,
        Setting(
            "devices of each host that only answer for the teacher, beside the student; 0: it shares the run's",
            minimum=0,
            may_change=True,
        ),
    ]
    mesh: DecodingMeshConfig
    compress: CompressConfig


@dataclasses.dataclass(frozen=True)
class WarmstartConfig:
    rebuild: Annotated[bool, Setting("train the shipped student and teacher again before the run")]


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    group_size: Annotated[int, Setting("student rollouts per prompt (G_S)", minimum=2)]
    questions_per_step: Annotated[int, Setting("new questions per step (|X_new|)", minimum=1)]
    max_new_tokens: Annotated[int, Setting("longest response, in tokens", minimum=1)]
    temperature: Annotated[float, Setting("sampling temperature of the student", above=0)]
    top_p: Annotated[float, Setting("nucleus of the student; 1: off", above=0, maximum=1)]
    top_k: Annotated[int, Setting("sample from this many of the most likely tokens; 0: off", minimum=0)]
    slots: Annotated[
        int,
        Setting(
            "most rollouts that a host decodes at once; cache_gigabytes may allow fewer", minimum=1, may_change=True
        ),
    ]
    chunk: Annotated[int, Setting("tokens decoded between two checks for finished rollouts", minimum=1)]
    cache_gigabytes: Annotated[
        float,
        Setting(
            "most memory per device for keys, values and states of rollouts, in 10^9 bytes", above=0, may_change=True
        ),
    ]
    state_dtype: Annotated[
        str, Setting("dtype of the recurrent states of rollouts between two tokens", choices=("float32", "bfloat16"))
    ]
    mesh: DecodingMeshConfig


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    endpoint: Annotated[
        str,
        Setting(
            "judge of free-form answers: an OpenAI-compatible http://HOST:8000/v1, or teacher; empty: none",
            may_change=True,
        ),
    ]
    model: Annotated[str, Setting("name of the judge's model at the endpoint")]
    thinking: Annotated[
        str,
        Setting(
            "off: ask the endpoint's chat template not to think; endpoint: leave it to the endpoint",
            choices=("off", "endpoint"),
        ),
    ]
    max_tokens: Annotated[int, Setting("longest output of the judge, in tokens", minimum=1)]
    concurrency: Annotated[int, Setting("requests at once from each host", minimum=1, may_change=True)]
    timeout_seconds: Annotated[float, Setting("longest time of a request", above=0, may_change=True)]
    retries: Annotated[int, Setting("further attempts after a request failed", minimum=0, may_change=True)]
    deadline_seconds: Annotated[
        float,
        Setting(
            "longest time that a step waits for an endpoint; what is open then stays undecided",
            above=0,
            may_change=True,
        ),
    ]
