"""The stages `dpo` and `kto`: from preference data to a model, or an adapter, that prefers likewise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import loop, metrics, parallel, state
from tinyseek.train.device import Setup, choose_device, settle
from tinyseek.train.objective import Objective
from tinyseek.tune.learner import check_fits, learner
from tinyseek.tune.preferences.dpo import Preferring
from tinyseek.tune.preferences.kto import Liking
from tinyseek.tune.preferences.options import DpoSettings, KtoSettings
from tinyseek.tune.preferences.pairs import Gathered, gather_pairs, gather_thumbs, report
from tinyseek.tune.preferences.reference import FILE, Reference, identity, precompute
from tinyseek.tune.preferences.texts import Texts
from tinyseek.tune.sft import inputs_of


def build(settings: DpoSettings | KtoSettings, folder: Path) -> None:
    """Tune a model on preferences, or train an adapter for it. A run that was stopped goes on from `FOLDER.work`.

    Raises:
        UserError: no usable data, a tokenizer that does not fit the model, a seq_len beyond its context.
        StoppedError, DivergedError: see `loop.train`.
    """
    base = Path(settings.model)
    tokenizer = Tokenizer.load(base)
    inputs, keys = inputs_of(settings)
    made_from = {"settings": settings.essence(), "inputs": keys}
    work = folder.with_name(folder.name + ".work")
    of_pairs = isinstance(settings, DpoSettings)
    with state.held(work):
        resume = loop.resumable(work, made_from, settings)
        learns = learner(settings, base, folder, resume)
        model = learns.model
        model.mtp.requires_grad_(False)  # they guess ahead, which preferences do not teach
        check_fits(model, tokenizer, base, settings.seq_len)
        gather, what, per = (gather_pairs, "pairs", 2) if of_pairs else (gather_thumbs, "answers", 1)
        found = gather(settings.data, tokenizer, settings)
        report(found, settings, what, per)
        texts = write(found, parallel.own(work) / "tokens", tokenizer.vocab_size)
        if "train" not in texts:
            raise UserError(f"{', '.join(settings.data)}: nothing is left to learn from; see the counts above")
        setup = same_everywhere(settings, resume)
        # The reference is computed in the run's number format, and batches of many shapes are no food for a compiler.
        settled = settings.model_copy(update={"precision": setup.precision, "compile": False})

        def before() -> CausalLM:
            """The model as it was before the run began."""
            if settings.lora is None:
                return CausalLM.load(base)
            return learner(settings, base, folder, None).model

        objective: Objective
        if isinstance(settings, DpoSettings):
            of = {"inputs": keys, "precision": setup.precision, "lora": made_from["settings"]["lora"]}
            start = model if resume is None else None
            objective = pairs_of(settings, texts, work, of, setup, lambda: start or before())
        else:
            objective = thumbs_of(settings, texts, found, before)
        outcome = loop.train(
            model,
            objective,
            settled,
            work,
            made_from=made_from,
            resume=resume,
            flops_per_token=learns.flops * metrics.training_flops(model.config, settings.seq_len),
            title=folder.name,
            write=learns.write,
        )
        figures = found.figures(per) | last_figures(work)
        loop.finish(outcome, work, folder, "dpo" if of_pairs else "kto", settings, inputs, keys, tokenizer, figures)


def write(found: Gathered, folder: Path, vocab_size: int) -> dict[str, Texts]:
    """Keep the texts of each split that has any."""
    return {
        split: Texts.write(folder, split, found.ids[split], found.said[split], vocab_size)
        for split in found.ids
        if found.ids[split]
    }


def same_everywhere(settings: DpoSettings | KtoSettings, resume: state.Checkpoint | None) -> Setup:
    """What the run computes on, in every process the same."""
    device = choose_device(settings.device)
    parallel.join(device)
    setup = settle(
        settings.model_copy(update={"compile": False}), resume.setup if resume else None, 0.0, lambda _: None
    )
    return replace(setup, **parallel.first(setup.plain(), device))


def pairs_of(
    settings: DpoSettings,
    texts: dict[str, Texts],
    work: Path,
    made_from: dict[str, Any],
    setup: Setup,
    load: Callable[[], CausalLM],
) -> Preferring:
    """What is learned of pairs, with the reference that the settings ask for.

    Args:
        made_from: what the reference's numbers depend on, besides the texts.
        load: gives the model as it was before the run began.
    """
    if settings.compared_with == "precomputed":
        size = max(2, 2 * (settings.batch_size // settings.accumulate))
        file = parallel.own(work) / FILE
        with loop.exact(setup):
            known = precompute(
                file,
                identity(texts, made_from),
                texts,
                lambda: load().to(choose_device(settings.device)),
                size,
                loop.mixed_precision(setup),
            )
        held_out = Preferring(texts["val"], settings, known["val"]) if "val" in texts else None
        return Preferring(texts["train"], settings, known["train"], held_out)
    reference = None
    if settings.compared_with == "base":
        reference = Reference(load() if settings.lora is None else None)
    held_out = Preferring(texts["val"], settings, reference) if "val" in texts else None
    return Preferring(texts["train"], settings, reference, held_out)


def thumbs_of(settings: KtoSettings, texts: dict[str, Texts], found: Gathered, load: Callable[[], CausalLM]) -> Liking:
    """What is learned of answers with thumbs.

    Raises:
        UserError: batches too small to estimate KL from.
    """
    if settings.batch_size < 2 * parallel.size():
        raise UserError(
            f"batch_size={settings.batch_size}: KL is estimated from at least two answers in each of {parallel.size()} "
            "processes; raise it"
        )
    good = {split: np.array(labels, np.bool_) for split, labels in found.good.items()}
    weigh(settings, int(good["train"].sum()), int((~good["train"]).sum()))
    under = settings.lora is not None and not settings.lora.save
    reference = Reference(None if under else load())
    held_out = Liking(texts["val"], good["val"], settings, reference) if "val" in texts else None
    return Liking(texts["train"], good["train"], settings, reference, held_out)


def weigh(settings: KtoSettings, good: int, bad: int) -> None:
    """Tell how many answers were liked, and if the weights do not make up for what there is more of (KTO, eq. 8)."""
    metrics.say(f"{good:,} of the answers were liked, {bad:,} were not")
    if not good or not bad:
        which = "liked" if good else "not liked"
        metrics.say(f"warning: all answers were {which}; KTO learns little from one kind alone")
        return
    ratio = settings.desirable_weight * good / max(settings.undesirable_weight * bad, 1e-9)
    if not 0.99 <= ratio <= 1.34:
        metrics.say(
            f"note: weighted, that is {ratio:.2f} to 1; the paper found 1 to 1.33 best. Try desirable_weight="
            f"{settings.undesirable_weight * bad / good:.2g}, or undesirable_weight={settings.desirable_weight * good / bad:.2g}"
        )


def last_figures(work: Path) -> dict[str, float]:
    """What the last validation, or else the last step, told of rewards."""
    records = metrics.read_records(parallel.own(work) / metrics.METRICS)
    validated = [record for record in records if "val_loss" in record]
    last, prefix = (validated[-1], "val_rewards/") if validated else ((records or [{}])[-1], "rewards/")
    return {name: value for name, value in last.items() if name.startswith(prefix)}
