"""What a run tells and stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_toys import RandomRows, run, settings_of, tiny_config

from tinyseek.errors import UserError
from tinyseek.model.counts import count
from tinyseek.model.presets import PRESETS
from tinyseek.train import metrics


def test_rewinding_drops_what_will_be_made_again_and_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    metrics.rewind(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_smoothing_has_no_bias_at_the_start_and_halves_after_its_half_life() -> None:
    assert metrics.smoothed([5.0] * 4, 10) == pytest.approx([5.0] * 4)
    settled = metrics.smoothed([1.0] * 200 + [0.0] * 10, 10)
    assert settled[-1] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (3600, "1h00m"), (3725, "1h02m")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert metrics.duration(seconds) == text


def test_the_picture_is_drawn_from_one_step_on_and_never_blank(tmp_path: Path) -> None:
    import matplotlib.image

    path = tmp_path / "metrics.jsonl"
    sizes = []
    for steps in (1, 200):
        path.write_text(
            "".join(
                json.dumps({"step": s, "loss": 5 - s / 100, "lr": 0.1} | ({"val_loss": 4.0} if s % 50 == 0 else {}))
                + "\n"
                for s in range(1, steps + 1)
            )
        )
        metrics.draw(path, tmp_path / "loss.png", "a title")
        image = matplotlib.image.imread(tmp_path / "loss.png")
        blue = (image[..., 2] > 0.6) & (image[..., 0] < 0.3)
        sizes.append(int(blue.sum()))
    assert 0 < sizes[0] < sizes[1]
    path.write_text("")
    (tmp_path / "loss.png").unlink()
    metrics.draw(path, tmp_path / "loss.png", "nothing yet")
    assert not (tmp_path / "loss.png").exists()


def test_tensorboard_gets_every_number_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path / "w", settings_of(steps=5, tensorboard=True, validate_every=5), val=RandomRows(4, 12, seed=2))
    events = EventAccumulator(str(tmp_path / "w" / metrics.EVENTS)).Reload()
    assert {"loss", "lr", "grad_norm", "val_loss", "mtp"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]


def test_plain_lines_say_loss_speed_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "w", settings_of(steps=3), flops_per_token=1e6, title="pretrain")
    said = capsys.readouterr().err
    assert "pretrain step 3/3  loss " in said
    assert " tokens/s  " in said
    assert " of peak  0s left" in said


def test_training_costs_three_forwards_and_mtp_another_layer_and_head() -> None:
    plain = PRESETS["bench"]
    assert metrics.training_flops(plain, 512) == pytest.approx(3 * count(plain).flops_per_token(512))
    config = tiny_config()
    without = config.model_copy(update={"num_nextn_predict_layers": 0})
    layer = count(without.model_copy(update={"num_hidden_layers": 3})).flops_per_token(64) - count(
        without
    ).flops_per_token(64)
    head = 2 * (2 * 16 * 16 + 61 * 16)
    extra = metrics.training_flops(config, 64) - metrics.training_flops(without, 64)
    assert extra == pytest.approx(3 * (layer + head))


def test_a_disk_that_fills_up_under_the_metrics_is_told(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with metrics.Reporter(tmp_path, "t", 0, 9, tensorboard=False) as report:
        report._file.close()
        report._file = Path("/dev/full").open("a")  # noqa: SIM115
        with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(No space left"):
            report.step({"step": 1, "loss": 1.0, "tokens_per_s": 1.0}, 0.0)


def test_what_a_stage_shows_leads_the_line_and_is_the_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, str]] = []
    monkeypatch.setattr(metrics, "draw", lambda *asked: drawn.append(asked[-2:]))
    with metrics.Reporter(tmp_path, "grpo", 0, 2, False, "reward", "mean reward of an answer") as report:
        figures = {"loss": 0.01, "reward": 0.5, "tokens_per_s": 10.0, "lr": 0.1}
        report.step({"step": 1, **figures, "val_loss": -0.25, "val_reward": 0.25}, 0.0)
        report.step({"step": 2, **figures}, 0.0)
    said = capsys.readouterr().err
    assert "grpo step 1/2  reward 0.5000  val 0.2500  loss 0.0100  10 tokens/s" in said
    assert "grpo step 2/2  reward 0.5000  loss 0.0100  10 tokens/s" in said
    assert drawn == [("reward", "mean reward of an answer")]
