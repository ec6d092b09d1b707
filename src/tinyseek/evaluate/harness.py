"""lm-eval on a model of ours: its tasks, its metrics; our forward pass and our engine. Needs the extra `lm-eval`.

Equal, question by question, to lm-eval's own transformers backend on the same folder (a test holds it).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM

from tinyseek import artifact
from tinyseek.engine.loading import load_model
from tinyseek.engine.options import EngineSettings
from tinyseek.engine.params import SamplingParams
from tinyseek.errors import UserError
from tinyseek.evaluate.answers import THOUGHT, write
from tinyseek.evaluate.loglikelihood import likelihoods
from tinyseek.evaluate.options import HarnessSettings
from tinyseek.evaluate.progress import counted
from tinyseek.settings import suggestion

if TYPE_CHECKING:
    from tinyseek.model.transformer import CausalLM
    from tinyseek.text.tokenizer import Tokenizer

_SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # of a task's generation_kwargs


class OurModel(TemplateLM):  # type: ignore[misc]
    """One of our models as lm-eval asks for one."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, settings: HarnessSettings, name: str) -> None:
        super().__init__()
        self.model, self.tokenizer, self.settings, self.name = model, tokenizer, settings, name
        self._device = model.device
        longest = model.config.max_position_embeddings
        self.max_length = min(settings.max_length or longest, longest)

    # ---- tokens

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        begins = string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        if add_special_tokens is False or (add_special_tokens is None and begins):
            return self.tokenizer.encode(string, specials=True)
        return self.tokenizer.encode_published(string)

    @property
    def tokenizer_name(self) -> str:
        return self.name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = self.tokenizer.render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        begun = str(chat_history[-1]["content"]).strip()  # the last message is the beginning of the answer
        return text[: text.rindex(begun) + len(begun)]

    # ---- what is asked

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_unused: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        with counted(f"{self.name}: likelihoods", len(pairs)) as progress:
            scored = likelihoods(self.model, pairs, self.max_length, progress)
            found = [(one.logprob, one.greedy) for one in scored]
        for (asked, _, _), answer in zip(requests, found, strict=True):
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answer)
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)  # the bar is ours
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            cut = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            mine = [(None, *make_disjoint_window(window)) for window in cut]
            windows += mine
            counts.append(len(mine))
        scores = iter(self._loglikelihood_tokens(windows))
        totals = [sum(next(scores)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        jobs = [self._job(*request.args) for request in requests]
        with counted(f"{self.name}: answers", len(jobs)) as progress:
            written = write(
                self.model,
                self.tokenizer,
                [(prompt, params) for prompt, params, _ in jobs],
                batch_size=self.settings.batch_size,
                progress=progress,
            )
        texts = []
        for (one,), (_, _, until), request in zip(written, jobs, requests, strict=True):
            text = one.text
            if self._thinks and THOUGHT in text:
                text = text.rpartition(THOUGHT)[2].lstrip()
            for stop in until:
                text = text.partition(stop)[0]
            texts.append(text)
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    @property
    def _thinks(self) -> bool:
        return self.settings.drop_thought and THOUGHT in self.tokenizer.controls

    def _job(self, context: str, asked: Mapping[str, Any]) -> tuple[list[int], SamplingParams, list[str]]:
        """The prompt, how to go on from it, and the strings that end the answer."""
        until = asked.get("until") or []
        until = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        until.append(self.tokenizer.decode([self.eot_token_id]))
        named = (asked.get(name) for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"))
        most = int(next((value for value in named if value is not None), self.settings.max_tokens))
        if most >= self.max_length:
            raise UserError(
                f"a task asks for answers of up to {most} tokens, but the model sees {self.max_length} in all; take a task "
                "with shorter ones, or write its generation_kwargs: {max_gen_toks: ...} into a YAML of your own"
            )
        sampled = {name: asked[name] for name in _SAMPLED if asked.get(name) is not None}
        if not asked.get("do_sample", float(sampled.get("temperature", 0.0)) > 0):
            sampled = {"temperature": 0.0}
        params = SamplingParams(
            max_tokens=most,
            stop=() if self._thinks else tuple(until),  # a thought may hold what ends an answer
            seed=self.settings.seed if sampled["temperature"] else None,
            **sampled,
        )
        return self.tok_encode(context)[-(self.max_length - most) :], params, until


# ---- running it ------------------------------------------------------------------------------------------------------------------


def evaluate(models: Mapping[str, Path], tasks: Sequence[str], settings: HarnessSettings, folder: Path) -> Path:
    """Run tasks on models; write results.json and samples.jsonl into `folder`.

    Args:
        models: their names and folders.
        tasks: names that lm-eval knows, or paths of task YAMLs.
    Raises:
        UserError: an unknown task, data that cannot be had, a model that cannot be read.
    """
    manager, wanted = _tasks(tasks)
    results: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    inputs = {f"models.{index}": path for index, path in enumerate(models.values())}
    essence = settings.plain() | {"tasks": list(tasks)}
    with artifact.writing(folder, "lm-eval", essence, inputs=inputs) as (work, figures):
        for name, path in models.items():
            found = _run(OurModel(*_loaded(path, settings), settings, name), wanted, manager, settings)
            results[name] = _plain({key: found.get(key) for key in _KEPT})
            samples += [
                {"model": name, "task": task, **_plain(sample)}
                for task, of in found["samples"].items()
                for sample in of
            ]
            figures[name] = {
                f"{task}.{metric.partition(',')[0]}": value
                for task, metrics in results[name]["results"].items()
                for metric, value in metrics.items()
                if isinstance(value, float) and "stderr" not in metric
            }
        artifact.write_text(work / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        with (work / "samples.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    return folder


_KEPT = ("results", "groups", "versions", "n-shot", "higher_is_better", "n-samples")


def _loaded(path: Path, settings: HarnessSettings) -> tuple[CausalLM, Tokenizer]:
    return load_model(path, EngineSettings(device=settings.device, dtype=settings.dtype))


def _tasks(tasks: Sequence[str]) -> tuple[Any, list[str]]:
    """lm-eval's task manager, and the tasks' names. Its own tasks are looked through only if one of them is wanted: that takes
    some seconds."""
    from lm_eval.tasks import TaskManager

    files = [task for task in tasks if Path(task).is_file()]
    named = [task for task in tasks if task not in files]
    for task in named:
        if task.endswith((".yaml", ".yml")):
            raise UserError(f"{task}: no such file")
    manager = TaskManager(include_defaults=bool(named))
    for task in named:
        if not manager.match_tasks([task]):
            raise UserError(f'lm-eval knows no task "{task}"; {_near(task, manager.all_tasks)}')
    return manager, [*files, *manager.match_tasks(named)]


def _near(task: str, known: Sequence[str]) -> str:
    hint = suggestion(task, known)
    return hint if hint.startswith("did") else f"{len(known):,} are listed by: lm-eval ls tasks"


def _run(model: OurModel, tasks: list[str], manager: Any, settings: HarnessSettings) -> dict[str, Any]:
    import lm_eval

    _quieten()
    if settings.chat and model.tokenizer.chat_template is None:
        raise UserError(f"{model.name}: has no chat template, so it is no chat model; leave out chat=true")
    try:
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=manager,
            num_fewshot=settings.fewshot,
            limit=settings.limit,
            apply_chat_template=settings.chat,
            fewshot_as_multiturn=settings.chat,
            system_instruction=settings.system,
            log_samples=True,
            bootstrap_iters=1000,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
        )
    except UserError:
        raise
    except Exception as error:
        why = _no_data(error)
        if why is None:
            raise
        raise UserError(
            f"{', '.join(tasks)}: the data of this task could not be had ({why}); it comes from the Hugging Face hub, or "
            "lies in a task YAML of your own beside its files (docs/post-training.md)"
        ) from None
    return found


def _no_data(error: BaseException | None) -> str | None:
    """The first line of an error that means that a data set is not there and cannot be fetched; none of other errors."""
    import datasets

    while error is not None:
        kind = type(error)
        of_hub = kind.__module__.startswith(("huggingface_hub", "httpx", "requests", "datasets.exceptions"))
        if of_hub or isinstance(error, ConnectionError | FileNotFoundError | datasets.exceptions.DatasetsError):
            return f"{kind.__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
        error = error.__cause__ or error.__context__
    return None


def _quieten() -> None:
    """lm-eval tells its steps and warns of what it does as asked; what is wrong still comes through."""
    for name in ("lm_eval", "lm-eval", "datasets", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _plain(value: Any) -> Any:
    """As JSON: NumPy's numbers as Python's, whatever else as text."""
    return json.loads(json.dumps(value, default=lambda one: one.item() if hasattr(one, "item") else str(one)))
