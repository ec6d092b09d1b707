"""Distillation from probabilities: at every token of the data the student is drawn to what the teacher would have said there.

The teacher is asked at each step, or its likeliest tokens were computed before (stored.py); with `on_policy` it scores what the
student itself wrote (on_policy.py). Both must have one vocabulary: probabilities are compared token by token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyseek.errors import UserError
from tinyseek.model import adapter
from tinyseek.model.checkpoint import read_config
from tinyseek.model.config import ModelConfig
from tinyseek.model.presets import from_preset
from tinyseek.model.transformer import CausalLM
from tinyseek.text.shards import IGNORED, EndToEnd, Packed, Rows, TokenFile
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import loop, metrics, parallel, state
from tinyseek.train.device import Setup, choose_device, settle
from tinyseek.train.objective import Batch, Objective, Update, on_device, parted
from tinyseek.tune.distill.divergence import How, Likeliest, Whole, distil
from tinyseek.tune.distill.options import DistillSettings
from tinyseek.tune.distill.stored import Stored, precompute
from tinyseek.tune.learner import Learner, check_fits, keep_generation, learner
from tinyseek.tune.sft import encode, inputs_of, pack, report

Source = Packed | EndToEnd


@dataclass
class Micro:
    """Rows of the data; N of their positions predict a token that is learned."""

    ids_BT: Tensor
    documents_BT: Tensor | None
    places_N: Tensor  # in the flattened rows
    targets_N: Tensor
    learned_B: Tensor  # how many of them each row has
    likeliest: Likeliest | None  # what was kept of the teacher at these


class Distilling(Objective):
    """The divergence of the student's probabilities from the teacher's, mixed with cross-entropy."""

    def __init__(
        self,
        source: Source,
        teacher: CausalLM | Stored,
        how: How,
        held_out: tuple[Source, CausalLM | Stored] | None = None,
    ) -> None:
        """Learn what the teacher says to the rows of `source`."""
        self.source, self.teacher, self.how = source, teacher, how
        self.held_out = Distilling(*held_out, how) if held_out is not None else None
        self._places: Source | None = None
        if isinstance(teacher, Stored):  # the same rows, of places in the file in place of ids
            file = dataclasses.replace(source.file, ids=np.arange(len(source.file), dtype=np.uint32), mask=None)
            self._places = Packed(file, source.seq_len) if isinstance(source, Packed) else EndToEnd(file)

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: NDArray[np.int64], accumulate: int, device: torch.device) -> Batch:
        """The rows of those numbers."""
        micro = [self.laid_out(self.source[at], at, device) for at in parted(indices, accumulate)]
        targets = sum(len(part.targets_N) for part in micro)
        return Batch([Update(micro, targets, len(indices))], sum(part.ids_BT.numel() for part in micro))

    def laid_out(self, rows: Rows, at: NDArray[np.int64] | None, device: torch.device) -> Micro:
        """Rows as a micro-batch.

        Args:
            at: their numbers, by which what was stored of the teacher is found.
        """
        learned_BT = rows.targets_BT != IGNORED
        kept = None
        if self._places is not None and isinstance(self.teacher, Stored) and at is not None:
            numbers_N = self.teacher.numbers[self._places[at].targets_BT[learned_BT]]
            kept = Likeliest(
                on_device(self.teacher.ids_MK[numbers_N].astype(np.int64), device),
                on_device(self.teacher.logps_MJ[numbers_N], device),
            )
        return Micro(
            on_device(rows.ids_BT, device),
            None if rows.documents_BT is None else on_device(rows.documents_BT, device),
            on_device(np.flatnonzero(learned_BT), device),
            on_device(rows.targets_BT[learned_BT], device),
            on_device(learned_BT.sum(-1), device),
            kept,
        )

    def losses(self, model: nn.Module, micro: Micro, update: Update) -> dict[str, Tensor]:
        """Shares of the loss, the divergence ("kl", of whatever kind), the cross-entropy of the data's tokens, the positions at
        which both find the same token likeliest, and the experts' balance."""
        assert isinstance(model, CausalLM)
        by = float(max(1, update.targets))
        hidden_BTD, balances, _ = model.hidden(micro.ids_BT, micro.documents_BT)
        hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, micro.places_N)
        teacher = micro.likeliest or self._asked(micro, model.config.vocab_size)
        sums = distil(hidden_ND, model.lm_head.weight, micro.targets_N, teacher, self.how_of(update))
        loss = sums.total / by
        figures = {"total": loss, "loss": loss.detach(), "kl": sums.divergence / by}
        figures |= {"ce": sums.cross_entropy / by, "agreement": sums.agreed / by}
        if balances:
            balance = torch.stack(balances).mean(0) @ (micro.learned_B / by).float()
            figures["total"] = loss + model.config.balance_loss_weight * len(balances) * balance
            figures["balance"] = balance.detach()
        return figures

    def how_of(self, update: Update) -> How:  # noqa: ARG002
        """What an update is measured by."""
        return self.how

    def _asked(self, micro: Micro, vocab_size: int) -> Whole:
        """What the teacher says, asked now."""
        teacher = self.teacher
        assert isinstance(teacher, CausalLM)
        with torch.no_grad():
            hidden_BTD, _, _ = teacher.hidden(micro.ids_BT, micro.documents_BT)
        return Whole(hidden_BTD.flatten(0, 1).index_select(0, micro.places_N), teacher.lm_head.weight[:vocab_size])


# ---- the stage -------------------------------------------------------------------------------------------------------------------


def build(settings: DistillSettings, folder: Path) -> None:
    """Train a student, or an adapter for it. A run that was stopped goes on from `FOLDER.work`.

    Raises:
        UserError: no conversations, a student with another vocabulary, a seq_len beyond either's context.
        StoppedError, DivergedError: see `loop.train`.
    """
    elder = Path(settings.teacher)
    tokenizer = Tokenizer.load(elder)
    inputs, keys = inputs_of(settings)
    made_from = {"settings": settings.essence(), "inputs": keys}
    work = folder.with_name(folder.name + ".work")
    if settings.student is None:
        check_same_tokens(elder, tokenizer, Path(settings.model), Tokenizer.load(settings.model))
    with state.held(work):
        resume = loop.resumable(work, made_from, settings)
        if settings.student is not None:
            learns = fresh(settings, elder, resume)
        else:
            learns = learner(settings, Path(settings.model), folder, resume)
        model = learns.model
        model.noise = settings.neftune
        model.mtp.requires_grad_(False)  # they guess ahead, which is not what the teacher is asked for
        check_fits(model, tokenizer, elder if settings.student is not None else Path(settings.model), settings.seq_len)
        setup = same_everywhere(settings, resume)
        examples = encode(settings.data, tokenizer, settings)
        report(examples, settings)
        rows = settings if not settings.on_policy else settings.model_copy(update={"packing": False})
        own = parallel.own(work)
        splits = {split: pack(own / "tokens", split, examples, tokenizer, rows) for split in examples.ids}
        sources = {split: source for split, source in splits.items() if source is not None}
        if "train" not in sources:
            raise UserError(f"{', '.join(settings.data)}: no example is left to learn from; see the counts above")
        with loop.exact(setup):
            objective = objective_of(settings, sources, model, tokenizer, own, keys["teacher"], setup)
        # The teacher has spoken in this number format, and batches of many shapes are no food for a compiler.
        settled = settings.model_copy(update={"precision": setup.precision, "compile": False})
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
        figures = examples.figures(settings.too_long == "truncate") | {"rows": len(sources["train"])} | last(work)
        loop.finish(outcome, work, folder, "distill", settings, inputs, keys, tokenizer, figures)


def objective_of(
    settings: DistillSettings,
    sources: dict[str, Source],
    model: CausalLM,
    tokenizer: Tokenizer,
    work: Path,
    key: str,
    setup: Setup,
) -> Distilling:
    """What is minimised: of the teacher at hand or of what is kept of it, over the data or over what the student says."""
    how = How(settings.divergence, settings.beta, settings.temperature, settings.ce_weight)

    def load() -> CausalLM:
        return load_teacher(Path(settings.teacher), settings)

    teachers: dict[str, CausalLM | Stored] = {}
    if settings.top_k is None:
        teachers = dict.fromkeys(sources, load())
    else:
        kept = min(settings.top_k, model.config.vocab_size)
        files: dict[str, TokenFile] = {split: source.file for split, source in sources.items()}
        of = f"{key} {setup.precision}"
        autocast: Callable[[], AbstractContextManager[Any]] = loop.mixed_precision(setup)
        stored = precompute(
            work / "teacher", of, files, load, kept, settings.temperature, model.config.vocab_size, autocast
        )
        teachers |= stored
    held_out = (sources["val"], teachers["val"]) if "val" in sources else None
    if settings.on_policy:
        from tinyseek.tune.distill.on_policy import OnPolicy

        teacher = teachers["train"]
        assert isinstance(teacher, CausalLM)
        return OnPolicy(sources["train"], teacher, how, held_out, model, tokenizer, settings)
    return Distilling(sources["train"], teachers["train"], how, held_out)


def check_same_tokens(elder: Path, teachers: Tokenizer, student: Path, students: Tokenizer) -> None:
    """See that both have one vocabulary: the same bytes behind every id, and the same control tokens.

    Raises:
        UserError: they have not, with where they differ.
    """
    ids = range(max(teachers.vocab_size, students.vocab_size))
    shown = [_shown(tokenizer) for tokenizer in (teachers, students)]
    unlike = [index for index in ids if shown[0].get(index) != shown[1].get(index)]
    if not unlike:
        if teachers.chat_template != students.chat_template:
            metrics.say(f"note: {student} has another chat template than {elder}; the student learns the teacher's")
        return
    first = unlike[0]
    one, other = (f"{part[first]!r:.40}" if first in part else "nothing" for part in shown)
    raise UserError(
        f"{student}: its tokenizer is not that of the teacher {elder}: {len(unlike):,} of {len(ids):,} tokens differ, the first is "
        f"{first}: {one} for the teacher, {other} for the student. Probabilities can be learned only over the same tokens; take "
        "student={...} for a fresh one with the teacher's, or learn from answers: collect, then sft"
    )


def _shown(tokenizer: Tokenizer) -> dict[int, str | bytes]:
    """What stands behind every id: bytes, or a control token's name."""
    found: dict[int, str | bytes] = {index: tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)}
    return found | {index: name for name, index in tokenizer.controls.items()}


def fresh(settings: DistillSettings, elder: Path, resume: state.Checkpoint | None) -> Learner:
    """A student with fresh weights and the teacher's vocabulary.

    Raises:
        UserError: a shape that cannot be.
    """
    config = student_config(settings, elder)
    torch.manual_seed(settings.seed)
    model = CausalLM.load(resume.folder) if resume else CausalLM(config)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    metrics.say(f"a student of {numbers:,} parameters with fresh weights")

    def write(target: Path) -> None:
        model.save(target)
        keep_generation(elder, target)

    return Learner(model, write, 1.0)


def student_config(settings: DistillSettings, elder: Path) -> ModelConfig:
    """The shape of a fresh student: a preset's or the teacher's, with what is changed in it. Without multi-token prediction, which
    the teacher does not teach, unless that is asked for."""
    base = read_config(adapter.find_base(elder) if adapter.is_adapter(elder) else elder)
    asked = dict(settings.student or {})
    own = {"vocab_size": base.vocab_size, "bos_token_id": base.bos_token_id, "eos_token_id": base.eos_token_id}
    if asked.get("vocab_size", base.vocab_size) != base.vocab_size:
        raise UserError(
            f"student.vocab_size={asked['vocab_size']}: it has the teacher's, {base.vocab_size}; leave it out"
        )
    changes = {"num_nextn_predict_layers": 0, **asked, **own}
    if "preset" in changes:
        return from_preset(str(changes.pop("preset")), changes)
    return ModelConfig.read({**base.plain(), **changes}, "student")


def load_teacher(elder: Path, settings: DistillSettings) -> CausalLM:
    """The teacher, frozen.

    Raises:
        UserError: its context is too short.
    """
    teacher = CausalLM.load(elder).eval().requires_grad_(False)
    if settings.seq_len > teacher.config.max_position_embeddings:
        context = teacher.config.max_position_embeddings
        raise UserError(f"seq_len={settings.seq_len}: the teacher {elder} has a context of {context}; lower seq_len")
    return teacher.to(choose_device(settings.device))


def same_everywhere(settings: DistillSettings, resume: state.Checkpoint | None) -> Setup:
    """What the run computes on, in every process the same."""
    device = choose_device(settings.device)
    parallel.join(device)
    plain = settings.model_copy(update={"compile": False})
    setup = settle(plain, resume.setup if resume else None, 0.0, lambda _: None)
    return dataclasses.replace(setup, **parallel.first(setup.plain(), device))


def last(work: Path) -> dict[str, float]:
    """What the last validation found, for the manifest."""
    names = ("val_kl", "val_ce", "val_agreement")
    measured = [record for record in metrics.read_records(work / metrics.METRICS) if "val_kl" in record]
    return {name: round(float(measured[-1][name]), 5) for name in names} if measured else {}
