"""What a run tells: a live bar on a terminal or plain lines elsewhere, `metrics.jsonl`, the loss curve, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.train import parallel

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from tinyseek.model.config import ModelConfig

METRICS, CURVE, EVENTS = "metrics.jsonl", "loss.png", "tensorboard"
_LINE_EVERY, _DRAW_EVERY = 10.0, 30.0  # seconds between plain lines, between pictures


def say(line: str) -> None:
    """Tell the user something worth a line, on stderr; of several processes the first does."""
    if not parallel.is_first():
        return
    print(line, file=sys.stderr, flush=True)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line that was cut short is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def rewind(path: Path, step: int) -> None:
    """Drop the records after `step`, which will be made again, and any half line."""
    if path.is_file():
        kept = [record for record in read_records(path) if record["step"] <= step]
        artifact.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def training_flops(config: ModelConfig, seq_len: int) -> float:
    """Floating-point operations of training on one token, forward and backward, with multi-token prediction.

    The backward pass multiplies by each weight twice, hence three forwards. A depth of MTP is one more layer, the projection that
    joins [2D -> D], and another pass through the head.
    """
    from tinyseek.model.counts import count

    whole = count(config)
    forward = whole.flops_per_token(seq_len)
    if config.num_nextn_predict_layers:
        deeper = count(
            config.model_copy(update={"num_hidden_layers": config.num_hidden_layers + 1, "num_nextn_predict_layers": 0})
        )
        joined = 2 * config.hidden_size**2 + config.vocab_size * config.hidden_size
        forward += config.num_nextn_predict_layers * (deeper.flops_per_token(seq_len) - forward + 2.0 * joined)
    return 3.0 * forward


def duration(seconds: float) -> str:
    """`1h02m`, `3m20s`, `45s`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class Reporter:
    """Takes one record a step and shows and stores it. A context manager: the bar lives inside the `with`."""

    def __init__(
        self,
        work: Path,
        title: str,
        step: int,
        steps: int,
        tensorboard: bool,
        shown: str = "loss",
        label: str = "loss",
    ) -> None:
        """Open the files, dropping records after `step`; `shown` is the figure to follow, `label` what the picture calls it.

        Raises:
            UserError: TensorBoard is asked for and not installed.
        """
        self.work, self.title, self.steps = work, title, steps
        self.shown, self.label = shown, label
        with _told(work / METRICS):
            rewind(work / METRICS, step)
            self._file: IO[str] = (work / METRICS).open("a", encoding="utf-8")
        self._events = _event_writer(work / EVENTS, step) if tensorboard else None
        self._bar: Bar | None = None
        self._task: Any = None
        self._first_step, self._started = step, time.monotonic()
        self._said = self._started - _LINE_EVERY + 1.0  # the first line after a second, to show that it moves
        self._drawn = self._started
        self._rate = 0.0

    def __enter__(self) -> Reporter:
        if sys.stderr.isatty() and parallel.is_first():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            steps = TextColumn("{task.completed}/{task.total}")
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                steps,
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
            self._task = self._bar.add_task(self.title, total=self.steps, completed=self._first_step, text="starting")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        with contextlib.suppress(OSError):  # a full disk is told by what failed first
            self._file.close()
            self._draw()  # also when the run went wrong: the curve shows how
        if self._events is not None:
            self._events.close()

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            say(line)

    def step(self, record: dict[str, Any], utilisation: float) -> None:
        """Store one step's record and show it.

        Args:
            record: plain numbers; `step`, `loss`, `tokens_per_s` and, where measured, `val_loss` are shown.
            utilisation: the model's FLOP/s over the machine's measured peak.
        """
        with _told(self.work / METRICS):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()  # to the system: a killed run has told all that it did
        if self._events is not None:
            for key, value in record.items():
                if isinstance(value, int | float) and key != "step":
                    self._events.add_scalar(key, value, record["step"])
        now = time.monotonic()
        done = record["step"] - self._first_step
        self._rate = done / (now - self._started)
        last = record["step"] == self.steps
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], text=self._text(record, utilisation))
            if "val_loss" in record:
                name = self.shown if f"val_{self.shown}" in record else "loss"
                self.say(f"{self.title} step {record['step']}: validation {name} {record[f'val_{name}']:.4f}")
        elif now - self._said >= _LINE_EVERY or last or "val_loss" in record:
            self._said = now
            say(f"{self.title} step {record['step']}/{self.steps}  {self._text(record, utilisation)}")

    def _text(self, record: dict[str, Any], utilisation: float) -> str:
        left = (self.steps - record["step"]) / self._rate if self._rate else 0.0
        share = f"  {utilisation:.0%} of peak" if utilisation else ""
        return f"{self._figures(record)}  {record['tokens_per_s']:,.0f} tokens/s{share}  {duration(left)} left"

    def _figures(self, record: dict[str, Any]) -> str:
        """The figure to follow, as it is validated too, and the loss."""
        said = []
        for name in dict.fromkeys((self.shown, "loss")):
            if name in record:
                said.append(f"{name} {record[name]:.4f}")
            if f"val_{name}" in record and not any("val " in words for words in said):
                said.append(f"val {record[f'val_{name}']:.4f}")
        return "  ".join(said)

    def draw(self) -> None:
        """The loss curve so far, if the last picture of it is a while old: a drawing takes a fifth of a second."""
        if time.monotonic() - self._drawn >= _DRAW_EVERY:
            self._draw()
            self._drawn = time.monotonic()

    def _draw(self) -> None:
        draw(self.work / METRICS, self.work / CURVE, self.title, self.shown, self.label)

    def flush(self) -> None:
        """Put what was written on the disk itself: before a checkpoint, which promises these records."""
        with _told(self.work / METRICS):
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make room and run again, it goes on from there"
        ) from None


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError('tensorboard=true: it is not installed; run: pip install "tinyseek[tensorboard]"') from None
    return SummaryWriter(str(folder), purge_step=step + 1)


def smoothed(values: list[float], half_life: float) -> list[float]:
    """Exponential moving average without the bias towards the start."""
    keep = 0.5 ** (1 / max(half_life, 1e-9))
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def draw(metrics: Path, picture: Path, title: str, shown: str = "loss", label: str = "loss") -> None:
    """A figure's course as PNG: in training (raw faint, smoothed on top), as validated, the learning rate on a second axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [record for record in read_records(metrics) if shown in record]
    if not records:
        return
    steps = [record["step"] for record in records]
    values = [record[shown] for record in records]
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    marker = "." if len(steps) < 3 else ""  # one point draws no line
    axes.plot(steps, values, color="tab:blue", alpha=0.25, linewidth=0.8, marker=marker)
    axes.plot(steps, smoothed(values, len(values) / 50), color="tab:blue", linewidth=1.6, label="training")
    validated = f"val_{shown}"
    measured = [(record["step"], record[validated]) for record in records if validated in record]
    if measured:
        axes.plot(*zip(*measured, strict=True), color="tab:orange", marker="o", markersize=4, label="validation")
    if shown == "loss":  # the first steps' fall would squeeze all the rest into the lower edge
        tail = sorted(values[len(values) // 10 :] + [value for _, value in measured])
        low, high = tail[0], max(tail[int(0.995 * (len(tail) - 1))], measured[0][1] if measured else 0.0)
        if high > low:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))
    axes.set(xlabel="step", ylabel=label, title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    rates = axes.twinx()
    rates.plot(steps, [record["lr"] for record in records], color="tab:gray", linewidth=0.7, alpha=0.8)
    rates.set_ylabel("learning rate", color="tab:gray")
    rates.set_ylim(bottom=0)
    aside = picture.with_name(picture.name + ".tmp")
    FigureCanvasAgg(figure).print_png(str(aside))  # type: ignore[no-untyped-call]
    aside.replace(picture)
