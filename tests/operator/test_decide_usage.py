"""What training cost, as the status adds it up."""

from __future__ import annotations

from tests.operator.builders import training


def test_time_and_gpus_of_the_pods_that_train_are_added_up():
    made = training(workers={"min": 1, "replicas": 2, "resources": {"limits": {"nvidia.com/gpu": 4}}})
    made.decides()
    begun = made.status.usage
    made.after(100).steps("w0-g1", 50).decides()
    usage = made.status.usage
    assert usage.running_seconds - begun.running_seconds == 100
    assert usage.gpu_seconds - begun.gpu_seconds == 100 * 2 * 4


def test_nothing_moves_between_two_status_writes():
    made = training().decides()
    before = made.status
    made.after(300).decides()
    assert made.status == before


def test_goodput_is_the_share_of_steps_that_counted():
    made = training().decides()
    made.after(60).steps("w0-g1", 40, productive_seconds=30.0).decides()
    usage = made.status.usage
    assert usage.goodput_percent == 100 * usage.productive_seconds // usage.running_seconds
    assert usage.lost_seconds == usage.running_seconds - usage.productive_seconds
    assert usage.productive_seconds == 30
    assert 0 < usage.goodput_percent < 100


def test_the_clock_stops_while_no_training_pod_runs():
    made = training().decides().after(50).edit(suspend=True).settles()
    stopped = made.status.usage
    assert stopped.measured is None
    assert stopped.running_seconds >= 50
    made.after(1000).decides()
    assert made.status.usage == stopped
