"""The recipe: one table of every sub-dataset of both corpora, and the settings of a build.

App. B.1 of arXiv:2606.18216 prints lists of names in two tiers, each with a cap, and no counts; it speaks of 34 Vero
sub-datasets and names 29 (30 folders: wemath has two). The default is what is named: 29 + 17 names, of which six are in
both corpora. What the paper does not say is a setting (`Settings`), with its default.

Vero's six captioning and instruction sets are not in the table: only a judge could score them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from zppo_jax.errors import ConfigError

Corpus = Literal["vero", "mmfinereason"]

ANSWER_TYPES: dict[str, str] = {
    "multiple_choice": "multiple_choice",
    "numeric": "numeric",
    "string_match": "string",
    "list_string_match": "list_any",
    "counting": "counting",
    "search": "search",
    "number_list": "number_list",
    "grounding": "grounding",
    "clicking": "clicking",
    "llm_judge": "free_form",
    "exact_match": "string",
    "list_match": "list_any",
    "ordering": "number_list",
}
"""Vero's reward type -> our answer type; the last three are names of its documentation. `web_action` and
`instruction_following` have no rule here."""

DECIDED = "multiple_choice, math, string"
"""Stands for the reward type of MMFineReason's rows, which have none: `golds.decide` chooses one of these by the gold,
or free_form."""


@dataclasses.dataclass(frozen=True)
class SubDataset:
    """A row of the table: a Vero folder, or a value of MMFineReason's column `source`.

    `name` is the canonical one, which both corpora share. `tier` is the paper's, 0 if the paper does not name it.
    `directives` are the families of upstream directives that its questions may hold (`directives.FAMILIES`).
    """

    corpus: Corpus
    upstream: str
    name: str
    tier: int
    reward_types: tuple[str, ...]
    directives: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.corpus}:{self.upstream}"


def _vero(upstream: str, name: str, tier: int, reward_types: str, directives: str = "") -> SubDataset:
    return SubDataset("vero", upstream, name, tier, tuple(reward_types.split()), tuple(directives.split()))


def _mm(upstream: str, name: str, tier: int, directives: str = "") -> SubDataset:
    families = ("letter", "reason", "boxed", *directives.split())
    return SubDataset("mmfinereason", upstream, name, tier, (DECIDED,), families)


_CHOICE, _NUMBER, _BOTH = "multiple_choice", "numeric", "multiple_choice numeric"
_WORDS, _LIST, _ALL = "numeric string_match", "list_string_match numeric", "multiple_choice numeric string_match"

TABLE: tuple[SubDataset, ...] = (
    # Vero, tier 1.
    _vero("stem-ai2d_merged", "ai2d", 1, _CHOICE, "letter"),
    _vero("stem-tqa", "tqa", 1, _CHOICE, "letter"),
    _vero("stem-mmk12", "mmk12", 1, _BOTH, "boxed"),
    _vero("stem-visualwebinstruct", "visualwebinstruct", 1, _ALL, "letter boxed"),
    _vero("stem-geo170k", "geo170k", 1, _CHOICE, "letter hint"),
    _vero("stem-geomverse", "geomverse", 1, _NUMBER),
    _vero("stem-geoqa_plus", "geoqa_plus", 1, _CHOICE, "letter hint"),
    _vero("stem-wemath20_pro", "wemath", 1, _ALL, "letter boxed"),
    _vero("stem-wemath20_standard", "wemath", 1, _ALL, "letter boxed"),
    _vero("stem-CoSyn_400k_math", "cosyn_math", 1, _NUMBER),
    _vero("chart_ocr-chartqa_difficulty", "chartqa", 1, _WORDS, "word"),
    _vero("chart_ocr-CoSyn_400k_chart", "cosyn_chart", 1, _WORDS),
    _vero("chart_ocr-CoSyn_400k_table", "cosyn_table", 1, _WORDS),
    _vero("chart_ocr-CoSyn_400k_diagram", "cosyn_diagram", 1, _WORDS),
    _vero("chart_ocr-arxivqa_formatted", "arxivqa", 1, _BOTH, "letter"),
    # Vero, tier 2.
    _vero("stem-raven", "raven", 2, _CHOICE, "letter"),
    _vero("stem-pathvqa", "pathvqa", 2, "string_match", "word"),
    _vero("stem-vqarad", "vqarad", 2, "string_match", "word"),
    _vero("chart_ocr-infographic_vqa", "infographic_vqa", 2, _WORDS, "word"),
    _vero("chart_ocr-evochart", "evochart", 2, _WORDS, "word"),
    _vero("counting_grounding_search-tallyqa", "tallyqa", 2, "counting", "word"),
    _vero("counting_grounding_search-pixmo", "pixmo", 2, "counting"),
    _vero("counting_grounding_search-multihop", "multihop", 2, "counting"),
    _vero("counting_grounding_search-pixelreasoner", "pixelreasoner", 2, "search", "letter boxed"),
    _vero("counting_grounding_search-visual_probe", "visual_probe", 2, "search"),
    _vero("knowledge_recognition-aokvqa", "aokvqa", 2, _LIST, "word letter"),
    _vero("knowledge_recognition-gqa", "gqa", 2, _CHOICE, "word letter"),
    _vero("knowledge_recognition-iconqa", "iconqa", 2, _ALL, "letter hint"),
    _vero("knowledge_recognition-vqav2", "vqav2", 2, _LIST, "word"),
    _vero("knowledge_recognition-visual7w", "visual7w", 2, _CHOICE, "letter"),
    # Vero, not named by the paper.
    _vero("chart_ocr-ecd_vqa", "ecd_vqa", 0, _WORDS),
    _vero("chart_ocr-reachqa", "reachqa", 0, _WORDS),
    _vero("counting_grounding_search-oodvqa", "oodvqa", 0, "counting"),
    _vero("counting_grounding_search-objects365_qa", "objects365_qa", 0, "grounding"),
    _vero("counting_grounding_search-refcocog", "refcocog", 0, "grounding"),
    _vero("counting_grounding_search-aerialvg", "aerialvg", 0, "grounding"),
    _vero("counting_grounding_search-groundui", "groundui", 0, "clicking"),
    _vero("counting_grounding_search-osatlas", "osatlas", 0, "clicking"),
    _vero("knowledge_recognition-vizwiz", "vizwiz", 0, "list_string_match", "word"),
    _vero("knowledge_recognition-indoor_qa", "indoor_qa", 0, "list_string_match"),
    _vero("knowledge_recognition-kvqa", "kvqa", 0, _LIST),
    _vero("knowledge_recognition-viquae", "viquae", 0, _LIST),
    _vero("knowledge_recognition-vcrqa", "vcrqa", 0, _CHOICE, "letter"),
    _vero("knowledge_recognition-popvqa", "popvqa", 0, _LIST),
    _vero("knowledge_recognition-kvg", "kvg", 0, "clicking"),
    _vero("spatial_action-game_QA", "gameqa", 0, "string_match"),
    _vero("spatial_action-spatial_ssrl", "spatial_ssrl", 0, "multiple_choice number_list"),
    _vero("spatial_action-visual_jigsaw_2d", "visual_jigsaw_2d", 0, "number_list"),
    _vero("spatial_action-visual_jigsaw_3d", "visual_jigsaw_3d", 0, "number_list"),
    _vero("spatial_action-magma_aitw", "magma_aitw", 0, "web_action"),
    _vero("spatial_action-magma_mind2web", "magma_mind2web", 0, "web_action"),
    _vero("spatial_action-stvqa", "stvqa", 0, _CHOICE, "letter"),
    _vero("spatial_action-robo2vlm", "robo2vlm", 0, _CHOICE, "letter"),
    # MMFineReason, tier 1.
    _mm("MMR1", "mmr1", 1),
    _mm("Euclid30K", "euclid", 1),
    _mm("FineVision-geo170k(qa)", "geo170k", 1, "hint"),
    _mm("FineVision-geometry3k(mathv360k)", "geometry3k", 1, "hint"),
    _mm("mmopenr1-8k", "mm_openr1", 1),
    _mm("WeMath2-Standard", "wemath", 1),
    _mm("WeMath2-Pro", "wemath", 1),
    _mm("WeMath2-SFT", "wemath", 1),
    _mm("FineVision-visualwebinstruct(filtered)", "visualwebinstruct", 1),
    _mm("BMMR", "bmmr", 1),
    _mm("FineVision-tqa", "tqa", 1, "word"),
    _mm("FineVision-ai2d_merged", "ai2d", 1, "word"),
    _mm("FineVision-scienceqa", "scienceqa", 1, "word"),
    _mm("ViRL39K", "virl39k", 1),
    # MMFineReason, tier 2.
    _mm("FineVision-raven", "raven", 2),
    _mm("VisualSphinx", "visualsphinx", 2),
    _mm("PuzzleQA", "puzzleqa", 2),
    _mm("LLaVA-CoT", "llava_cot", 2, "word"),
    _mm("Zebra-CoT-Physics", "zebra_cot", 2),
    # MMFineReason, not named by the paper on this side.
    _mm("MMK12", "mmk12", 0),
    _mm("GameQA-140K", "gameqa", 0),
    _mm("WaltonColdStart", "walton", 0),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything besides the inputs that decides what a build holds; written to dataset.json.

    Open points of the paper, with our reading as the default:
      vero_wins: "name": where Vero has a sub-dataset of the same canonical name, all rows of MMFineReason's are left
        out; "rows": only those that repeat a row (image and question) of Vero's.
      cap_per: "name": Vero's and MMFineReason's sub-datasets of one canonical name share a cap; "upstream": each
        folder or source has its own.
      multi_answer: golds with several alternatives are kept as list_any, or "drop"ped as `answer_type`.
      free_form: golds that no rule can score are "drop"ped as `answer_type`, or kept for a judge.
      missing_pass_rate: MMFineReason rows without a rate are "drop"ped, or "keep" counts them as hard.
      max_pass_rate: rows that Qwen3-VL-4B solves more often are dropped (0.5 in the paper).
      split: of Vero; "val" is never mixed in by default.
      min_images, max_images: of a question; one each by default, as in both corpora.
      recover_golds: whether a missing MMFineReason gold is taken from the <answer> tag of `original_answer`.
      max_answer_chars, min_side: of the gold, and in pixels of the shorter side (512 and 100 in the paper).
      max_prompt_tokens: with image tokens, chat template and closer (4,096 in the paper's configuration).
      template, min_pixels, max_pixels: the closer, and the sizes to which images are scaled, for that count; those of
        configs/paper.py (the paper states the pixels for its evaluation).
      decontaminate_by: what a question may not share with evaluation data: "image", "question", "either" or "both".
    The order is: filters (`filters.REASONS`), duplicates, then a seeded sample up to the cap.
    """

    seed: int = 0
    cap_tier1: int = 2800
    cap_tier2: int = 1400
    cap_per: str = "name"
    vero_wins: str = "name"
    split: str = "train"
    max_pass_rate: float = 0.5
    missing_pass_rate: str = "drop"
    multi_answer: str = "keep"
    free_form: str = "drop"
    recover_golds: bool = False
    max_answer_chars: int = 512
    min_side: int = 100
    min_images: int = 1
    max_images: int = 1
    max_prompt_tokens: int = 4096
    template: str = "paper"
    min_pixels: int = 262_144
    max_pixels: int = 1_310_720
    decontaminate_by: str = "either"

    def cap(self, tier: int) -> int:
        """The most questions of a sub-dataset of this tier; one that the paper does not name counts as tier 2."""
        return self.cap_tier1 if tier == 1 else self.cap_tier2


CHOICES: dict[str, tuple[str, ...]] = {
    "cap_per": ("name", "upstream"),
    "vero_wins": ("name", "rows"),
    "missing_pass_rate": ("drop", "keep"),
    "multi_answer": ("keep", "drop"),
    "free_form": ("drop", "keep"),
    "template": ("paper", "compact"),
    "decontaminate_by": ("either", "image", "question", "both"),
}
"""The values of the settings that are words."""


def chosen(include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[SubDataset, ...]:
    """The rows of the table that a build reads: those that the paper names and `include`, without `exclude`.

    Both take canonical names, folders and source values. Raises ConfigError for one that is not in the table.
    """
    known = {word for row in TABLE for word in (row.name, row.upstream)}
    for word in (*include, *exclude):
        if word not in known:
            raise ConfigError(f"{word!r} is not a sub-dataset of the table: `--list` prints their names")
    rows = (row for row in TABLE if row.tier or {row.name, row.upstream} & set(include))
    return tuple(row for row in rows if not {row.name, row.upstream} & set(exclude))


def tiers(rows: Iterable[SubDataset]) -> dict[str, int]:
    """The tier of each canonical name, in the order of the table: the first that is not 0."""
    found: dict[str, int] = {}
    for row in rows:
        found[row.name] = found.get(row.name) or row.tier
    return found


def as_json(rows: Sequence[SubDataset], settings: Settings) -> dict[str, Any]:
    """The recipe as dataset.json has it."""
    table = [dataclasses.asdict(row) | {"reward_types": list(row.reward_types)} for row in rows]
    for row in table:
        row["directives"] = list(row["directives"])
    return {"settings": dataclasses.asdict(settings), "table": table, "answer_types": ANSWER_TYPES}


def listing(rows: Sequence[SubDataset], settings: Settings) -> str:
    """The whole table as text; rows that `rows` lacks have no cap."""
    head = ("corpus", "folder or source", "name", "tier", "cap", "answer types", "directives")
    lines: list[tuple[str, ...]] = [head]
    tier_of = tiers(rows)
    for row in TABLE:
        cap = f"{settings.cap(tier_of[row.name]):,}" if row in rows else "-"
        kinds = ", ".join(
            dict.fromkeys(ANSWER_TYPES.get(kind, kind if kind == DECIDED else f"({kind})") for kind in row.reward_types)
        )
        lines.append((row.corpus, row.upstream, row.name, str(row.tier or "-"), cap, kinds, " ".join(row.directives)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    caps = sum(settings.cap(tier) for tier in tier_of.values())
    total = f"{len(rows)} rows with {len(tier_of)} names, at most {caps:,} questions"
    return "\n".join([*text, "", total if settings.cap_per == "name" else total + " a corpus"]) + "\n"
