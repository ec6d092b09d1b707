"""What a whole recipe needs on this machine: parameters, memory, time. Measured on a small scale before anything runs.

The cheap stages (cleaning, tasks, tokenizer, tokens) really run on a first piece of the corpus, in a folder that is thrown away;
training takes a few real steps in a process of its own (train/plan.py); what asks a model asks a fresh one of the same shape, which
writes until it is stopped: a little longer than the real one will. Times are scaled by the corpus's size and the number of steps.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tinyseek.errors import UserError
from tinyseek.model.config import ModelConfig
from tinyseek.recipe import KINDS, Recipe, kind_of
from tinyseek.settings import StageSettings
from tinyseek.train.options import PretrainSettings, TrainSettings
from tinyseek.tune.distill.options import CollectSettings
from tinyseek.tune.options import SftSettings, TuneSettings
from tinyseek.tune.preferences.options import PreferenceSettings
from tinyseek.tune.rl.options import RlSettings

SAMPLE_BYTES = 6_000_000  # of the corpus that the cheap stages are tried on
ASKED = 32  # prompts that a teacher is tried on
ROLLOUTS = 3  # steps of learning from rewards that are tried; the first one compiles
PAIR = 2.4  # what a preference step costs beside one on as many rows: two answers, and the reference's share of them
_GB = 1e9


@dataclass(frozen=True)
class StagePlan:
    """What one stage will need."""

    stage: str
    kind: str
    seconds: float
    peak_bytes: int  # resident memory of the process
    parameters: int = 0
    active: int = 0
    note: str = ""


def plan(recipe: Recipe, say: Callable[[str], None] = lambda _: None) -> list[StagePlan]:
    """Plan every stage.

    Raises:
        UserError: a stage does not fit into the free memory, naming the setting to lower; or whatever its cheap stages raise.
    """
    with tempfile.TemporaryDirectory(prefix="tinyseek-plan-") as folder:
        return _Planner(recipe, Path(folder), say).plan()


class _Planner:
    """Plans the stages in order: later ones need what the earlier ones made of the sample."""

    def __init__(self, recipe: Recipe, folder: Path, say: Callable[[str], None]) -> None:
        self.recipe, self.folder, self.say = recipe, folder, say
        self.scale: dict[str, float] = {}  # data stage -> how many times its sample the corpus is
        self.configs: dict[str, ModelConfig] = {}
        self.untried: set[str] = set()  # stages whose sample says nothing, and those that are made of them
        self.plans: dict[str, StagePlan] = {}

    def plan(self) -> list[StagePlan]:
        for name, settings in self.recipe.stages.items():
            self.say(f"trying {name}")
            if isinstance(settings, CollectSettings) or (
                self._untried(settings) and not isinstance(settings, TrainSettings)
            ):
                self.untried.add(name)
            try:
                self.plans[name] = self._plan(name, settings)
            except UserError as error:
                if not self._untried(settings):  # the recipe itself is at fault, not what the sample lacks
                    raise
                self.plans[name] = StagePlan(
                    name, kind_of(settings), 2.0, _resident(), note=f"not tried: {error!s:.60}"
                )
        return list(self.plans.values())

    def _plan(self, name: str, settings: StageSettings) -> StagePlan:
        if isinstance(settings, PretrainSettings):
            return self._pretrain(name, settings)
        if isinstance(settings, SftSettings) and not self._untried(settings):
            return self._sft(name, settings)
        if isinstance(settings, RlSettings):
            return self._rewards(name, settings)
        if isinstance(settings, TuneSettings):
            return self._tune(name, settings)
        if isinstance(settings, CollectSettings) and settings.teacher in self.configs:
            return self._collect(name, settings)
        if kind_of(settings) == "eval":
            return self._evaluate(name, settings)
        if kind_of(settings) == "report":
            return StagePlan(name, "report", 4.0, 350_000_000)
        return self._cheap(name, settings)

    def _untried(self, settings: StageSettings) -> bool:
        """Whether a stage takes what only the real run will have: answers of trained models, or what is made of them."""
        return any(source in self.untried for source in settings.taken().values())

    def _source(self, source: str) -> Path:
        """Where a stage's input is: what the sample was made into, or the path that it is."""
        return self.folder / source if source in self.recipe.stages else Path(source)

    def _cheap(self, name: str, settings: StageSettings) -> StagePlan:
        """Run the stage on the sample; its time grows with the corpus, its memory does not."""
        scale = max((self.scale.get(source, 1.0) for source in settings.taken().values()), default=1.0)
        if hasattr(settings, "corpus"):
            settings, scale = self._sampled(settings)
        if kind_of(settings) == "tokenizer":
            scale = min(scale, 30.0)  # it trains on a bounded sample
        self.scale[name] = scale
        settings = settings.resolved(lambda source: str(self._source(source)))
        started = time.perf_counter()
        KINDS[kind_of(settings)].build_function()(settings, self.folder / name)
        seconds = (time.perf_counter() - started) * scale
        return StagePlan(name, kind_of(settings), seconds, _resident())

    def _sampled(self, settings: StageSettings) -> tuple[StageSettings, float]:
        """The stage's settings over the first part of its corpus, and how many times that the whole is."""
        from tinyseek.text.sources import SourceSettings, corpus_files, read_documents

        assert isinstance(settings, SourceSettings)
        whole = sum(file.path.stat().st_size for file in corpus_files(settings.corpus))
        if whole <= 2 * SAMPLE_BYTES:
            return settings, 1.0
        file = self.folder / "sample.jsonl"
        taken = 0
        with file.open("w", encoding="utf-8") as stream:
            for document in read_documents(settings):
                stream.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
                taken += len(document.text.encode())
                if taken >= SAMPLE_BYTES:
                    break
        sampled = settings.model_copy(update={"corpus": str(file), "text_field": "text", "encoding": "utf-8"})
        return sampled, max(1.0, whole / taken)

    def _pretrain(self, name: str, settings: PretrainSettings) -> StagePlan:
        from tinyseek.text.shards import TokenFile, Windows

        file = TokenFile.open(self._source(settings.tokens), "train")
        windows = len(Windows(file, settings.seq_len, settings.stride)) * self.scale.get(settings.tokens, 1.0)
        config = settings.model_config_for(file.vocab_size)
        self.configs[name] = config
        return self._training(
            name, settings, config, settings.total_steps(round(windows)), packed=settings.mask_documents
        )

    def _sft(self, name: str, settings: SftSettings) -> StagePlan:
        from tinyseek.text.tokenizer import Tokenizer
        from tinyseek.tune import sft

        config = self._config(settings.model)
        self.configs[name] = config
        tokenizers = [stage for stage in self.recipe.stages if (self.folder / stage / "tokenizer.json").is_file()]
        folder = self.folder / tokenizers[-1] if tokenizers else Path(settings.model)
        tokenizer = Tokenizer.load(folder)
        examples = sft.encode([self._source(source) for source in settings.data], tokenizer, settings)
        rows = sft.pack(self.folder / f"{name}.rows", "train", examples, tokenizer, settings)
        if rows is None:
            raise UserError(f"{name}: no example is left to learn from in {', '.join(settings.data)}")
        return self._training(name, settings, config, settings.total_steps(len(rows)), packed=True)

    def _tune(self, name: str, settings: TuneSettings) -> StagePlan:
        """Other learning: the same steps over full rows, so rather too long than too short."""
        config = self.configs[name] = self._config(settings.model)
        if settings.steps is None:
            raise UserError("how many steps it takes follows from data that are not there yet; steps= would tell")
        planned = self._training(name, settings, config, settings.steps, packed=True)
        times = PAIR if isinstance(settings, PreferenceSettings) else 1.0
        return replace(planned, seconds=planned.seconds * times, note=f"{settings.steps:,} steps, at most")

    def _rewards(self, name: str, settings: RlSettings) -> StagePlan:
        """A few real steps, with answers as long as they may be."""
        config = self.configs[name] = self._config(settings.model)
        data = {
            "model": str(self._fresh(settings.model)),
            "data": [str(self._source(source)) for source in settings.data],
        }
        quiet = {"val_fraction": 0.0, "save_every": 0, "show_every": 0, "rewards": {"length": 1.0}, "resume": "fresh"}
        tried = settings.model_copy(update={**data, **quiet, "steps": ROLLOUTS, "warmup_steps": 0})
        KINDS[kind_of(settings)].build_function()(tried, self.folder / name)
        records = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").open(encoding="utf-8")]
        each = (records[-1]["seconds"] - records[0]["seconds"]) / (len(records) - 1)
        steps = settings.steps or settings.total_steps(self._records(settings.data))
        answers = f"{settings.batch_size} x {settings.num_generations}"
        note = f"{steps:,} steps of {answers} answers of {settings.max_completion_length} tokens, at most"
        from tinyseek.model.counts import count

        counts = count(config)
        return StagePlan(
            name,
            kind_of(settings),
            records[0]["seconds"] + each * steps,
            _resident(),
            counts.total,
            counts.active,
            note,
        )

    def _collect(self, name: str, settings: CollectSettings) -> StagePlan:
        """A few prompts, with answers as long as they may be."""
        prompts = self._records(settings.data)
        prompts = min(prompts, settings.limit or prompts)
        data = {"teacher": str(self._fresh(settings.teacher)), "data": [str(self._source(s)) for s in settings.data]}
        tried = settings.model_copy(update={**data, "limit": min(ASKED, prompts)})
        KINDS["collect"].build_function()(tried, self.folder / f"{name}.first")  # the loops compile
        started = time.perf_counter()
        KINDS["collect"].build_function()(tried, self.folder / name)
        seconds = (time.perf_counter() - started) * prompts / min(ASKED, prompts)
        return StagePlan(name, "collect", seconds, _resident(), note=f"{prompts:,} prompts x {settings.n}, at most")

    def _records(self, sources: list[str]) -> int:
        """How many records data folders hold to learn from."""
        files = [self._source(source) / "train.jsonl" for source in sources]
        return max(1, sum(file.read_bytes().count(b"\n") for file in files if file.is_file()))

    def _fresh(self, model: str) -> Path:
        """A model's folder: the real one, or a fresh model of the shape that it will have."""
        if model not in self.configs:
            return Path(model)
        folder = self.folder / f"{model}.fresh"
        if not folder.is_dir():
            import torch

            from tinyseek.model.transformer import CausalLM
            from tinyseek.text.tokenizer import Tokenizer

            torch.manual_seed(0)
            CausalLM(self.configs[model]).save(folder)
            tokenizers = [stage for stage in self.recipe.stages if (self.folder / stage / "tokenizer.json").is_file()]
            Tokenizer.load(self.folder / tokenizers[-1]).save(folder)
        return folder

    def _config(self, model: str) -> ModelConfig:
        """The shape of a model: of an earlier stage's, or of a checkpoint folder."""
        if model in self.configs:
            return self.configs[model]
        from tinyseek.model.checkpoint import read_config

        return read_config(Path(model))

    def _training(self, name: str, settings: TrainSettings, config: ModelConfig, steps: int, packed: bool) -> StagePlan:
        from tinyseek.model.counts import count
        from tinyseek.train import plan

        counts = count(config)
        probed = plan.probe(config, settings, counts.total + counts.mtp, packed)
        validations = steps // settings.validate_every + 1 if settings.validate_every else 1
        seconds = probed.start_seconds + steps * probed.seconds_per_step + validations * probed.seconds_per_validation
        tokens = settings.batch_size * settings.seq_len / probed.seconds_per_step
        note = (
            f"{steps:,} steps of {settings.batch_size} x {settings.seq_len}, {tokens:,.0f} tokens/s, {probed.precision}"
        )
        return StagePlan(
            name, kind_of(settings), seconds, probed.peak_bytes, counts.total + counts.mtp, counts.active, note
        )

    def _evaluate(self, name: str, settings: StageSettings) -> StagePlan:
        """Score a fresh model of the first model's shape on a few tasks and a little text, and scale."""
        import torch

        from tinyseek.evaluate.options import EvalSettings
        from tinyseek.evaluate.perplexity import bits_per_byte
        from tinyseek.evaluate.scores import score_tasks
        from tinyseek.model.transformer import CausalLM
        from tinyseek.text.tokenizer import Tokenizer

        assert isinstance(settings, EvalSettings)
        tokenizers = [stage for stage in self.recipe.stages if (self.folder / stage / "tokenizer.json").is_file()]
        if not tokenizers:
            return StagePlan(name, "eval", 30.0, 700_000_000, note="not measured: no tokenizer in this recipe")
        tokenizer = Tokenizer.load(self.folder / tokenizers[-1])
        model = CausalLM(self._config(settings.models[0])).eval()
        seconds = 0.0
        with torch.inference_mode():
            if settings.data:
                source = self._source(settings.data) / "val.jsonl"
                texts = [json.loads(line)["text"] for line in source.open(encoding="utf-8")][:20]
                size = sum(len(text.encode()) for text in texts)
                began = time.perf_counter()
                bits_per_byte(model, tokenizer, texts, seq_len=settings.seq_len, stride=settings.stride)
                whole = min(settings.max_bytes, source.stat().st_size)
                seconds += (time.perf_counter() - began) * whole / max(size, 1)
            if settings.tasks:
                source = self._source(settings.tasks) / "heldout.jsonl"
                records = [json.loads(line) for line in source.open(encoding="utf-8")][: settings.max_tasks]
                few = records[: max(8, settings.batch_size // (1 + settings.samples * settings.seeds))]
                began = time.perf_counter()
                score_tasks(model, tokenizer, few, settings)
                seconds += (time.perf_counter() - began) * len(records) / max(len(few), 1)
        return StagePlan(name, "eval", seconds * len(settings.models), _resident())


def _resident() -> int:
    """Bytes of memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def rows_of(plans: list[StagePlan]) -> tuple[list[str], list[list[str]]]:
    """The plan as a table: a head, and a row a stage with the whole at the end."""
    from tinyseek.run import clock

    head = ["stage", "parameters", "active", "memory at the peak", "time", ""]
    rows = [
        [
            p.stage,
            f"{p.parameters:,}" if p.parameters else "",
            f"{p.active:,}" if p.active else "",
            f"{p.peak_bytes / _GB:.2f} GB",
            clock(p.seconds),
            p.note,
        ]
        for p in plans
    ]
    total = sum(p.seconds for p in plans)
    peak = max((p.peak_bytes for p in plans), default=0)
    free = psutil.virtual_memory().available / _GB
    machine = f"{os.cpu_count()} cores, {free:.1f} GB free here"
    return head, [*rows, ["all", "", "", f"{peak / _GB:.2f} GB", clock(total), machine]]
