"""The training loop: one, for every stage that learns by gradient descent. Read `train` from top to bottom.

A step is: add up the gradient over micro-batches, clip, update, move the experts' balance, report; now and then validate and
checkpoint. What is minimised is the stage's `Objective`. Every loss is divided by the update's number of targets, whatever
micro-batch they fell into, so accumulation is the large batch's gradient token for token (as TRL #2175 was not).
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.text.shards import Sampler
from tinyseek.train import DivergedError, StoppedError, metrics, parallel, state
from tinyseek.train.device import Setup, choose_device, settle
from tinyseek.train.objective import Batch, Objective, watched
from tinyseek.train.optim import make_optimizer
from tinyseek.train.options import TrainSettings
from tinyseek.train.schedule import factor

if TYPE_CHECKING:
    from tinyseek.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path  # the checkpoint to publish: the last, or the best where early stopping is on
    progress: state.Progress
    setup: Setup
    early: bool  # stopped before its last step


def train(
    model: nn.Module,
    objective: Objective,
    settings: TrainSettings,
    work: Path,
    *,
    made_from: Mapping[str, Any],
    resume: state.Checkpoint | None = None,
    flops_per_token: float = 0.0,
    title: str = "train",
    write: Callable[[Path], object] | None = None,
) -> Outcome:
    """Train a model until its last step, going on from a checkpoint if one is given.

    Args:
        model: with fresh weights, or those of `resume.folder`: a `CausalLM`, or a module with one as its `trunk`.
        objective: what is minimised, over which items.
        work: where checkpoints, metrics.jsonl and the loss curve go; the caller holds it (`state.held`).
        made_from: settings and input keys; recorded, and compared when the run is resumed (`resumable`).
        flops_per_token: of forward and backward, for the utilisation shown.
        write: puts what was trained into a checkpoint's folder; none writes the whole model.
    Raises:
        StoppedError: the user asked to stop; saved.
        DivergedError: the loss became NaN or jumped and stayed up.
        UserError: a device that is not there, a full disk, more processes than a batch has items.
    """
    if settings.batch_size < parallel.size():
        raise UserError(
            f"batch_size={settings.batch_size} leaves some of {parallel.size()} processes without work; raise it, or start fewer"
        )
    device = choose_device(settings.device)
    parallel.join(device)
    steps = settings.total_steps(len(objective))
    work_flops = flops_per_token * steps * settings.batch_size * settings.seq_len
    setup = settle(settings, resume.setup if resume else None, work_flops, metrics.say)
    setup = replace(setup, **parallel.first(setup.plain(), device))
    trunk = trunk_of(model.to(device).train())
    state.own_memory(model)
    optimizer = make_optimizer(model, settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sampler = Sampler(len(objective), settings.batch_size, settings.seed)
    progress = resume.progress if resume else state.Progress(sampler=sampler.state())
    torch.manual_seed(settings.seed + parallel.rank())
    if resume:
        state.restore_optimizer(optimizer, resume)
        if parallel.is_first():
            state.set_random_state(resume.rng, device)
        sampler.restore(progress.sampler)
        objective.restore(progress.objective)
        progress.changed += [f"step {progress.step}: {change}" for change in state.differences(resume, made_from)]
    autocast = mixed_precision(setup)
    saved = resume.folder if resume else None
    stopping = False

    def draw() -> Batch:
        return fetch(objective, sampler.next(), settings, device)

    def enough() -> bool:
        return 0 < settings.early_stop <= progress.waited

    with (
        exact(setup),
        asked_to_stop() as stop,
        metrics.Reporter(
            parallel.own(work), title, progress.step, steps, settings.tensorboard, objective.shown, objective.label
        ) as report,
    ):
        upcoming = None if objective.on_policy else draw()
        if setup.compiled and upcoming:
            setup = replace(setup, compiled=compile_blocks(model, objective, upcoming, autocast, report.say))
        if resume:
            say_differences(resume, setup)
        while progress.step < steps and not enough() and not stopping:
            started = time.perf_counter()
            rate = settings.lr * factor(progress.step, steps, settings)
            optimizer.set_lr(rate)
            batch = upcoming or draw()
            position, upcoming = sampler.state(), None  # the checkpoint of this step draws the next batch again

            told = []  # by each update
            for update in batch.updates:
                figures: dict[str, Tensor] = {}
                for micro in update.micro:
                    with autocast():
                        losses = objective.losses(model, micro, update)
                    losses["total"].backward()
                    for name, value in watched(losses).items():
                        figures[name] = figures.get(name, 0.0) + value.detach().float()
                parallel.add_gradients(trained)
                norm = nn.utils.clip_grad_norm_(trained, settings.clip or math.inf)
                if upcoming is None and not objective.on_policy:
                    upcoming = draw()  # while the device is still at work
                told.append(read(figures, norm))  # the update's one wait for it
                if trouble := spike(told[-1]["loss"], told[-1]["grad_norm"], progress, settings):
                    raise DivergedError(diverged(trouble, progress.step + 1, saved, settings))
                optimizer.step()
                optimizer.zero_grad()
            validate_now = is_due(progress.step + 1, settings.validate_every, steps) and objective.held_out is not None
            load = trunk.expert_load() if validate_now else {}
            for _, mixture in trunk.experts():
                parallel.add_up(mixture.gate.load_E)
            trunk.update_balance()

            seconds = time.perf_counter() - started
            progress.step += 1
            progress.tokens += batch.tokens
            progress.seconds += seconds
            progress.sampler, progress.objective = position, objective.state()
            record: dict[str, Any] = {"step": progress.step, **mean(told), **batch.figures, "lr": rate}
            record |= {"tokens": progress.tokens, "targets": sum(update.targets for update in batch.updates)}
            record |= {"tokens_per_s": round(batch.tokens / seconds, 1), "seconds": round(progress.seconds, 3)}

            val_loss: float | None = None
            better = False
            if validate_now:
                measured = objective.validate(model, settings, device, autocast)
                record |= {f"val_{name}": value for name, value in measured.items()}
                record |= {"expert_load": {layer: rounded(share) for layer, share in load.items()}}
                val_loss = measured.get("loss")
                better = val_loss is not None and note_validation(val_loss, progress)
            report.step(record, flops_per_token * batch.tokens / seconds / setup.peak / parallel.size())

            stopping = parallel.total([stop.is_set()], device) != [0.0]
            at_end = progress.step == steps or enough() or stopping
            # In the middle of what may become a spike nothing is saved, so that the last checkpoint stays a good one.
            if at_end or (not progress.streak and (better or is_due(progress.step, settings.save_every, steps))):
                report.flush()
                saved = state.save(
                    work, write or trunk.save, optimizer, progress, made_from, setup.plain(), device, val_loss
                )
                state.prune(work, settings.keep_last)
                report.draw()

    if enough():
        metrics.say(f"stopped early: {progress.waited} validations without a better loss than {progress.best_loss}")
    elif progress.step < steps:
        kept = f"saved in {saved}" if saved else "nothing to save yet"
        raise StoppedError(f"stopped at step {progress.step} of {steps}; {kept}. The same command goes on from there")
    assert saved is not None
    if settings.early_stop and (best := state.best(work)) is not None:
        saved = best.folder
    return Outcome(saved, progress, setup, early=progress.step < steps)


def trunk_of(model: nn.Module) -> CausalLM:
    """The language model that a module is, or has as its `trunk`."""
    found = model if isinstance(model, CausalLM) else model.trunk
    assert isinstance(found, CausalLM)
    return found


def fetch(objective: Objective, indices: Any, settings: TrainSettings, device: torch.device) -> Batch:
    """This process's share of the items of those numbers, with the counts of all processes' shares."""
    batch = objective.fetch(parallel.share(indices), settings.accumulate, device)
    counts = [batch.tokens, *(number for update in batch.updates for number in (update.targets, update.items))]
    tokens, *others = (round(number) for number in parallel.total(counts, device))
    updates = [replace(u, targets=others[2 * n], items=others[2 * n + 1]) for n, u in enumerate(batch.updates)]
    return Batch(updates, tokens, batch.figures)


def read(figures: Mapping[str, Tensor], norm: Tensor) -> dict[str, float]:
    """An update's figures, summed over all processes, and the norm of its gradient; the loss first."""
    sums = parallel.add_up(torch.stack([*figures.values(), norm.float() / parallel.size()]))
    values = dict(zip([*figures, "grad_norm"], sums.tolist(), strict=True))
    return {"loss": values["loss"], **values}


def mean(told: list[dict[str, float]]) -> dict[str, float]:
    """The mean of several updates' figures; a batch that nothing could be learned from has a loss of 0."""
    if not told:
        return {"loss": 0.0}
    return {name: sum(figures[name] for figures in told) / len(told) for name in told[0]}


def resumable(work: Path, made_from: Mapping[str, Any], settings: TrainSettings) -> state.Checkpoint | None:
    """The checkpoint to go on from, if there is one and the settings say so.

    Raises:
        UserError: it belongs to other settings or inputs, and `resume` is auto.
    """
    if settings.resume == "fresh":
        for path in work.glob("*") if parallel.is_first() else ():
            if path.name not in ("lock", "log.txt"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return None
    checkpoint = state.newest(work, metrics.say)
    if checkpoint is None:
        return None
    changes = state.differences(checkpoint, made_from)
    if changes and settings.resume == "auto":
        shown = "; ".join(changes[:5]) + ("; ..." if len(changes) > 5 else "")
        stage = work.name.removesuffix(".work")
        raise UserError(
            f"{work}: holds a stopped run with other settings ({shown}). Put them back to go on with it, or say resume=changed "
            f"(in a recipe {stage}.resume=changed) to go on with the new ones, or resume=fresh to start again"
        )
    if changes:
        metrics.say(f"going on with changed settings: {'; '.join(changes)}")
    metrics.say(f"going on from {checkpoint.folder}")
    return checkpoint


def say_differences(checkpoint: state.Checkpoint, setup: Setup) -> None:
    """Tell what of the machine's set-up is not as it was, since the result may then differ in the last bits."""
    if differences := setup.differences(checkpoint.setup):
        metrics.say(
            f"note: {'; '.join(differences)}. The weights will be as good, but not bit for bit those of a run never stopped"
        )


def compile_blocks(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    autocast: Callable[[], AbstractContextManager[Any]],
    say: Callable[[str], None],
) -> bool:
    """Compile the model's blocks, if that works here and changes nothing; whether it did.

    The gradient of a trial batch is held against the uncompiled one before anything depends on it; what the trial touches (buffers,
    random states, gradients) is put back, so that a resumed run stays exact. Shapes are fixed: a graph for any shape would be
    another program than the one for the first. The experts stay as they are: a graph that knows how many tokens each expert got
    would be compiled anew at every step.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trunk = trunk_of(model)
    blocks = [*trunk.model.layers, *trunk.mtp]
    trunk.fixed_shapes = True
    rng = state.random_state(trunk.device)

    def put_back() -> None:
        model.zero_grad(set_to_none=True)
        state.set_random_state(rng, trunk.device)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])

    def trial() -> Tensor:
        update = batch.updates[0]
        with autocast():
            total = objective.losses(model, update.micro[0], update)["total"]
        total.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
        found = torch.cat([total.detach().reshape(1), *(gradient.flatten() for gradient in gradients)])
        put_back()
        return found

    expected = trial()
    reason = ""
    try:
        for _, mixture in trunk.experts():
            mixture.experts.__dict__["forward"] = torch.compiler.disable(mixture.experts.forward)
        for block in blocks:
            block.compile(dynamic=False)
        found = trial()
        off = float((found - expected).norm() / expected.norm())
        if not off < 0.05:  # bfloat16 rounds at 0.004; what goes wrong is off by much more
            reason = f"the compiled model's gradient is off by {off:.0%}"
    except Exception as error:  # whatever a compiler does wrong here, the run is worth more
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
    if reason:
        for block in blocks:
            block._compiled_call_impl = None
        trunk.fixed_shapes = False
        for _, mixture in trunk.experts():
            mixture.experts.__dict__.pop("forward", None)
        put_back()
        say(f"not compiled: {reason}; going on without")
    return not reason


def mixed_precision(setup: Setup) -> Callable[[], AbstractContextManager[Any]]:
    """Autocast to bfloat16 over float32 master weights, or nothing."""
    if setup.precision == "float32":
        return nullcontext
    return lambda: torch.autocast(setup.device, dtype=torch.bfloat16)


def note_validation(val_loss: float, progress: state.Progress) -> bool:
    """Record a validation; whether it is the best so far."""
    progress.val_loss = val_loss
    if progress.best_loss is None or val_loss < progress.best_loss:
        progress.best_loss, progress.best_step, progress.waited = val_loss, progress.step, 0
        return True
    progress.waited += 1
    return False


# Steps that the running mean and deviation of the loss look back over, and steps before they are trusted.
_MEMORY, _TRUSTED_AFTER = 50, 50


def spike(loss: float, grad_norm: float, progress: state.Progress, settings: TrainSettings) -> str | None:
    """What is wrong with this step's loss, if anything; else the running figures take it in."""
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        return f"the loss is {loss} and the gradient's norm {grad_norm}"
    if settings.spike_sigma and progress.loss_seen >= _TRUSTED_AFTER:
        # A floor under the deviation: a loss that has gone quiet may wander by 2 % without being a spike.
        deviation = max(math.sqrt(progress.loss_var), 0.02 * abs(progress.loss_mean))
        if loss > progress.loss_mean + settings.spike_sigma * deviation:
            progress.streak += 1
            if progress.streak >= settings.spike_steps:
                limit = f"{progress.loss_mean:.3f} + {settings.spike_sigma:g} deviations"
                return f"the loss has been above {limit} for {progress.streak} steps"
            return None
    progress.streak = 0
    progress.loss_seen += 1
    weight = max(1 / _MEMORY, 1 / progress.loss_seen)
    gap = loss - progress.loss_mean
    progress.loss_mean += weight * gap
    progress.loss_var = (1 - weight) * (progress.loss_var + weight * gap * gap)
    return None


def finish(
    outcome: Outcome,
    work: Path,
    folder: Path,
    kind: str,
    settings: TrainSettings,
    inputs: Mapping[str, Path],
    keys: Mapping[str, str],
    tokenizer: Tokenizer,
    figures: Mapping[str, Any],
) -> None:
    """Turn a finished run into its artefact: what was trained, the tokenizer, metrics and curve; then drop the work folder."""
    if not parallel.is_first():
        parallel.wait()
        return
    with artifact.writing(folder, kind, settings.essence(), inputs=inputs, keys=keys) as (partial, measured):
        state.copy_model(outcome.folder, partial)
        tokenizer.save(partial)
        for name in (metrics.METRICS, metrics.CURVE):
            shutil.copyfile(work / name, partial / name)
        if (work / metrics.EVENTS).is_dir():
            shutil.copytree(work / metrics.EVENTS, partial / metrics.EVENTS)
        progress, setup = outcome.progress, outcome.setup
        measured |= {
            **figures,
            "steps": progress.step,
            "tokens": progress.tokens,
            "training_seconds": round(progress.seconds, 1),
            "tokens_per_s": round(progress.tokens / max(progress.seconds, 1e-9), 1),
            "val_loss": progress.val_loss,
            "best_val_loss": progress.best_loss,
            "published_step": state.read(outcome.folder).progress.step,
            "stopped_early": outcome.early,
            "setup": setup.plain(),
        }
        if progress.changed:
            measured["changed_on_the_way"] = progress.changed
    shutil.rmtree(work)
    parallel.wait()


def diverged(trouble: str, step: int, saved: Path | None, settings: TrainSettings) -> str:
    """The message of a run that went wrong."""
    kept = f"the last good state is kept in {saved}" if saved else "no checkpoint had been saved yet (see save_every)"
    how = (
        f"Go on from it with a lower rate: lr={settings.lr / 2:g} resume=changed"
        if saved
        else f"Lower lr (now {settings.lr:g})"
    )
    return f"step {step}: {trouble}; {kept}. {how}; a longer warmup_steps or a smaller clip also helps"


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something done each `every` steps, and at the end, is due after `step`."""
    return step == steps or (every > 0 and step % every == 0)


def rounded(shares: Any) -> list[float]:
    """Shares with four digits, which is enough to look at."""
    return [round(float(share), 4) for share in shares]


@contextmanager
def exact(setup: Setup) -> Iterator[None]:
    """The run's number of threads and, on a CPU, only operations that add in a fixed order: without, the backward of an indexing
    adds in whatever order the threads come, and no run could be repeated bit for bit. Afterwards all is as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(setup.threads)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if setup.device == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that the step under way is finished and saved. A second Ctrl-C ends at once."""
    stop = threading.Event()

    def handler(number: int, _: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        metrics.say(f"{signal.Signals(number).name}: finishing this step and saving; once more to end without")

    if threading.current_thread() is not threading.main_thread():  # only the main thread is sent signals
        yield stop
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
