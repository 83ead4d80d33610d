"""The line of progress fits a terminal and says what it knows."""

import pytest

from clipjax.training.progress import COLUMNS, Window, flops_text, progress_line

VALUES = {
    "loss": 1.5, "logit_scale": 10.0, "learning_rate": 1e-3, "images_per_second": 1234.5, "seconds_per_step": 0.5,
    "data_wait": 0.0, "skipped": 0.0, "model_flops_per_second": 4.21e13,
}  # fmt: skip


def test_the_line_shows_mfu_where_the_peak_is_known_and_else_flops():
    assert "  42.1 TFLOP/s  ETA" in progress_line(20, 200, VALUES)
    line = progress_line(20, 200, VALUES | {"mfu": 0.4321})
    assert "  MFU 43.2%  ETA" in line and "FLOP/s" not in line


@pytest.mark.parametrize("more", [{}, {"data_wait": 0.25}, {"data_wait": 0.25, "skipped": 12.0}])
def test_a_line_of_a_long_run_fits_a_hundred_columns(more):
    values = VALUES | {"images_per_second": 123_456.0, "seconds_per_step": 1.0, "mfu": 0.4321, "loss": 10.4} | more
    line = progress_line(100_000, 500_000, values)
    assert len(line) <= COLUMNS and "loss 10.4000  " in line and "123,456 images/s" in line
    assert ("MFU 43.2%" in line and "ETA 111h 06m" in line) == ("skipped" not in more)


def test_flops_are_written_with_three_digits():
    shown = [flops_text(flops) for flops in (0.0, 12.0, 999.4e9, 999.9e9, 1.5e12, 4.321e16, 2.5e21)]
    assert shown == [
        "0.00 FLOP/s", "12.0 FLOP/s", "999 GFLOP/s", "1.00 TFLOP/s", "1.50 TFLOP/s", "43.2 PFLOP/s", "2,500 EFLOP/s"
    ]  # fmt: skip


def test_rates_have_mfu_only_with_a_peak_and_flops_only_where_they_are_counted():
    with_peak, without, uncounted = Window(8, peak=1e9), Window(8), Window(8)
    for window, flops in ((with_peak, 5e6), (without, 5e6), (uncounted, 0.0)):
        window.add(0.0, flops=flops)
        window.add(0.0, flops=flops)
    rates = with_peak.rates()
    assert rates["mfu"] == pytest.approx(rates["model_flops_per_second"] / 1e9)
    assert rates["model_flops_per_second"] == pytest.approx(1e7 / (2 * rates["seconds_per_step"]))
    assert "mfu" not in without.rates() and "model_flops_per_second" not in uncounted.rates()
