"""Will a training run fit, and how long will it take: a few real steps in a process of their own, measured from outside.

An estimate by formula comes first, because a model that cannot fit must not be tried; it only turns away what is far too large.
What is told to people is measured: seconds a step, and the peak of resident memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tinyseek.errors import UserError
from tinyseek.model.config import ModelConfig
from tinyseek.train.options import TrainSettings

GIB = 1 << 30
_PROBE_SECONDS = 12.0  # of steps, after the first
_SLOW_START = 180.0  # seconds that a probe may take before its first step
_USABLE = 0.92  # share of the free memory that a run may plan with


@dataclass(frozen=True)
class Need:
    """What a run needs by formula, in bytes."""

    weights: int  # weights, gradients and the optimizer's averages, float32 each
    activations: int  # what one micro-batch keeps for its backward

    @property
    def total(self) -> int:
        return self.weights + self.activations


@dataclass(frozen=True)
class Probe:
    """What a few real steps took."""

    seconds_per_step: float
    seconds_per_validation: float
    start_seconds: float  # from the process's start to its first step: imports, weights, the first, slower step
    peak_bytes: int  # resident memory of the process at its peak
    precision: str


def need(config: ModelConfig, settings: TrainSettings, parameters: int) -> Need:
    """The bytes that a run needs, by formula.

    Adam keeps two averages a parameter and Muon one. A block keeps about 10 activations of the model's width a token besides its
    heads' queries, keys and values, twice over, and the inner widths of what MLP the token meets, four times over (measured on
    the presets, docs/log.md); the loss works in blocks and adds little.
    """
    copies = {"adamw": 4, "adam": 4, "rmsprop": 3, "adagrad": 3, "sgd": 2}.get(settings.optimizer, 3)
    heads = config.num_attention_heads * (2 * config.qk_dim + config.v_dim)
    inner = config.intermediate_size
    if config.n_routed_experts:
        routed = config.num_experts_per_tok * (config.moe_intermediate_size + config.hidden_size)
        inner = routed + config.n_shared_experts * config.moe_intermediate_size
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    numbers = layers * (10 * config.hidden_size + 2 * heads + 4 * inner)
    tokens = settings.batch_size // settings.accumulate * settings.seq_len
    return Need(4 * copies * parameters, 4 * tokens * numbers)


def refuse_if_too_large(config: ModelConfig, settings: TrainSettings, parameters: int) -> None:
    """Stop a run on the CPU that has no chance to fit, before it takes the memory.

    Raises:
        UserError: with what it needs, what is free, and the setting to lower.
    """
    if settings.device not in ("auto", "cpu"):
        return
    free = psutil.virtual_memory().available
    needed = need(config, settings, parameters)
    if needed.total > free:
        raise UserError(too_large(needed.total, free, needed, settings))


def too_large(wanted: int, free: int, needed: Need, settings: TrainSettings) -> str:
    """The line that says what does not fit, and what to lower."""
    size = settings.batch_size // settings.accumulate
    if needed.activations > needed.weights and size > 1:
        same = f"raise accumulate (now {settings.accumulate}; the result stays the same)"
        advice = f"{same} or lower batch_size (now {settings.batch_size})"
    elif needed.activations > needed.weights:
        advice = f"lower seq_len (now {settings.seq_len}) or the model's num_hidden_layers"
    else:
        advice = "take a smaller model: lower model.hidden_size, model.num_hidden_layers or model.n_routed_experts"
    return f"this run needs about {wanted / GIB:.1f} GB of memory, and {free / GIB:.1f} GB are free; {advice}"


def probe(config: ModelConfig, settings: TrainSettings, parameters: int, packed: bool) -> Probe:
    """Take a few real steps on random tokens in a process of their own.

    Args:
        packed: with several documents a row, as fine-tuning has them.
    Raises:
        UserError: it does not fit, by formula or in fact.
    """
    refuse_if_too_large(config, settings, parameters)
    free = psutil.virtual_memory().available
    of_the_loop = {name: value for name, value in settings.plain().items() if name in TrainSettings.model_fields}
    job = {"config": config.plain(), "settings": of_the_loop, "packed": packed}
    # -W ignore: a child's warnings are not the plan's.
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tinyseek.train.plan"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(job))
    child.stdin.close()
    peak = _watch(child, int(free * _USABLE))
    assert child.stdout is not None
    assert child.stderr is not None
    out, errors = child.stdout.read(), child.stderr.read()
    if peak is None:
        raise UserError(too_large(free, free, need(config, settings, parameters), settings))
    if child.returncode:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the measured probe of this run failed: {last}")
    return Probe(**json.loads(out.strip().splitlines()[-1]))


def _watch(child: subprocess.Popen[str], limit: int) -> int | None:
    """Wait for the child; its peak memory seen, or None if it was stopped because it took more than `limit`."""
    peak, process = 0, psutil.Process(child.pid)
    while child.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.Error:
            break
        if peak > limit:
            child.kill()
            child.wait()
            return None
        time.sleep(0.05)
    child.wait()
    return peak


def _child(job: dict[str, Any]) -> Probe:
    """What the probing process does: the loop's own parts on random tokens."""
    import resource

    import torch

    from tinyseek.model.transformer import CausalLM
    from tinyseek.train import loop, metrics, objective, state
    from tinyseek.train.device import settle
    from tinyseek.train.optim import make_optimizer

    began = time.perf_counter()
    settings = TrainSettings(**job["settings"]).model_copy(update={"compile": False})
    config = ModelConfig(**job["config"])
    setup = settle(settings, None, 0.0, lambda _: None)
    torch.set_num_threads(setup.threads)
    device = torch.device(setup.device)
    model = CausalLM(config).to(device).train()
    optimizer = make_optimizer(model, settings)
    optimizer.set_lr(1e-9)
    size = settings.batch_size // settings.accumulate
    autocast = loop.mixed_precision(setup)

    def micro_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        ids = torch.randint(0, config.vocab_size, (size, settings.seq_len + 1), device=device)
        documents = (torch.arange(settings.seq_len, device=device) // 48).expand(size, -1) if job["packed"] else None
        targets = ids[:, 1:].clone()
        if documents is not None:  # a fine-tuning row learns from answers alone: about half of it
            targets[:, ::2] = objective.IGNORED
        return ids[:, :-1], targets, documents

    def step() -> None:
        for _ in range(settings.accumulate):
            with autocast():
                losses = model.loss(*micro_batch())
            losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.update_balance()

    with loop.exact(setup):
        step()
        started = time.perf_counter()
        times: list[float] = []
        while len(times) < 3 or (time.perf_counter() - started < _PROBE_SECONDS and len(times) < 200):
            before = time.perf_counter()
            step()
            times.append(time.perf_counter() - before)
        before = time.perf_counter()
        model.eval()
        with torch.no_grad(), autocast():
            model.loss(*micro_batch())
        validation = (time.perf_counter() - before) * settings.accumulate * settings.val_batches
    with tempfile.TemporaryDirectory(prefix="tinyseek-probe-") as work:  # a checkpoint and a picture take memory too
        records = "".join(json.dumps({"step": n, "loss": 1.0, "lr": 1e-3}) + "\n" for n in range(1, 9))
        (Path(work) / metrics.METRICS).write_text(records, encoding="utf-8")
        progress = state.Progress(sampler={"epoch": 0})
        state.save(Path(work), model.save, optimizer, progress, {}, setup.plain(), device, None)
        metrics.draw(Path(work) / metrics.METRICS, Path(work) / metrics.CURVE, "probe")
    unit = 1 if sys.platform == "darwin" else 1024
    # The mean, not the median: on a machine with other work the slow steps are part of what a run will see.
    return Probe(
        seconds_per_step=sum(times) / len(times),
        seconds_per_validation=validation,
        start_seconds=started - began,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        precision=setup.precision,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(_child(json.load(sys.stdin)))))
