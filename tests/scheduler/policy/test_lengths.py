from __future__ import annotations

import random

import pytest

from parrot_mq.messages import LengthHistogram
from parrot_mq.messages.lengths import MAX_BUCKET, bucket_of
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import OutputLengths
from parrot_mq.scheduler.policy.lengths import MAX_FUNCTIONS
from tests.scheduler.support import add, core_with


def request(**sampling: object) -> RequestNode:
    return add(core_with(), "a", sampling=sampling)


def histogram_of(*lengths: int) -> LengthHistogram:
    histogram = LengthHistogram()
    for length in lengths:
        histogram = histogram.observed(length)
    return histogram


# The histogram --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", range(24))
def test_a_bucket_begins_at_each_power_of_two(exponent: int) -> None:
    assert bucket_of(2**exponent) == 4 * exponent
    assert exponent == 0 or bucket_of(2**exponent - 1) <= 4 * exponent
    assert bucket_of(2**24 * 5) == MAX_BUCKET


def test_quantiles_are_within_a_bucket_of_the_truth() -> None:
    dice = random.Random(5)
    lengths = [round(dice.lognormvariate(5, 0.6)) for _ in range(4000)]
    histogram = histogram_of(*lengths)
    recent = sorted(lengths[-60:])  # what is older weighs less than a twentieth of the newest
    assert recent[36] * 0.8 < histogram.mean < recent[48] * 1.25
    for share in (0.1, 0.5, 0.9):
        low, high = recent[round(60 * max(0.0, share - 0.15))], recent[min(59, round(60 * min(1.0, share + 0.1)))]
        assert low / 1.2 <= histogram.quantile(share) <= high * 1.2


def test_what_is_old_is_forgotten() -> None:
    histogram = histogram_of(*[40] * 50, *[400] * 200)
    assert histogram.count == 250
    assert [bucket for bucket, _ in histogram.weights] == [bucket_of(400)]
    assert histogram.mean == pytest.approx(400, rel=0.01)
    assert histogram.quantile(0.01) >= 300


def test_its_size_is_bounded_and_it_survives_the_store() -> None:
    dice = random.Random(1)
    histogram = histogram_of(*(dice.randrange(1, 2 ** dice.randrange(1, 40)) for _ in range(2000)))
    assert len(histogram.weights) <= MAX_BUCKET + 1
    again = LengthHistogram.from_data(histogram.to_data())
    assert again.count == histogram.count
    assert again.mean == pytest.approx(histogram.mean, rel=0.001)
    assert again.quantile(0.9) == pytest.approx(histogram.quantile(0.9), rel=0.05)


def test_a_mean_of_an_earlier_version_is_read() -> None:
    histogram = LengthHistogram.from_data(41.5)
    assert histogram.mean == 41.5
    assert 38 <= histogram.quantile(0.5) <= 45
    assert histogram.observed(41).count == 11


def test_nothing_seen_has_no_length() -> None:
    assert LengthHistogram().quantile(0.9) == 0.0


# What the scheduler expects -------------------------------------------------------------------------------------------


def test_few_samples_move_the_estimate_from_the_limit_and_many_settle_it() -> None:
    node, lengths = request(max_tokens=500), OutputLengths()
    assert lengths.expected(node) == lengths.high(node) == 500
    estimates = [lengths.expected(node)]
    for _ in range(60):
        lengths.observe(node, 40)
        estimates.append(lengths.expected(node))
    assert estimates == sorted(estimates, reverse=True)
    assert estimates[1] == 141  # half way, in the logarithm
    assert estimates[-1] in (41, 42)
    for _ in range(200):
        lengths.observe(node, 80)
    assert lengths.expected(node) == 81


def test_memory_is_set_aside_for_nine_in_ten() -> None:
    node, lengths = request(max_tokens=4000), OutputLengths()
    dice = random.Random(3)
    for _ in range(1000):
        lengths.observe(node, dice.choice([50, 50, 50, 50, 400]))
    assert lengths.expected(node) < 250
    assert 360 <= lengths.high(node) <= 500


def test_a_rare_long_output_does_not_make_the_reserve_smaller_than_the_mean() -> None:
    core = core_with()
    node = add(core, "a", sampling={"max_tokens": 100_000})
    for length in [10] * 29 + [90_000]:
        core.lengths.observe(node, length)
    core.learn_function((0, node.tenant, node.function), None, {})
    core.describe([node], 0.0)
    assert node.high_output_tokens < node.output_tokens == node.reserved_tokens


def test_the_limit_holds_whatever_was_learned() -> None:
    node, lengths = request(max_tokens=10), OutputLengths()
    lengths.observe(node, 1000)
    assert lengths.expected(node) == lengths.high(node) == 10


def test_a_length_that_is_fixed_is_taken_as_it_is_and_teaches_nothing() -> None:
    node, lengths = request(max_tokens=300, ignore_eos=True), OutputLengths()
    lengths.observe(node, 5)
    assert lengths.expected(node) == 300
    assert lengths.changed(10) == []


def test_what_is_learned_is_bounded() -> None:
    node, lengths = request(max_tokens=500), OutputLengths()
    lengths.observe(node, 8)
    for n in range(MAX_FUNCTIONS):
        node.function = f"f{n}"
        lengths.observe(node, 40)
    node.function = "f"
    assert lengths.expected(node) == 500


def test_what_an_earlier_leader_learned_counts_until_something_newer_is() -> None:
    node, lengths = request(max_tokens=500), OutputLengths()
    old = histogram_of(*[40] * 30)
    lengths.recall(node.tenant, node.function, {node.prompt_end: old})
    assert 40 <= lengths.expected(node) < 45
    assert lengths.changed(10) == []
    other = OutputLengths()
    other.observe(node, 80)
    other.recall(node.tenant, node.function, {node.prompt_end: old, 9: old})
    assert other.expected(node) == 200
    (learned,) = other.changed(10)
    assert (learned.partition, learned.tenant, learned.function) == (node.partition, node.tenant, node.function)
    assert learned.lengths == {node.prompt_end: histogram_of(80), 9: old}


def test_what_was_learned_is_told_once() -> None:
    node, lengths = request(max_tokens=500), OutputLengths()
    for n in range(5):
        node.function = f"f{n}"
        lengths.observe(node, 8)
    assert [learned.function for learned in lengths.changed(3)] == ["f0", "f1", "f2"]
    lengths.observe(node, 8)
    assert [learned.function for learned in lengths.changed(3)] == ["f3", "f4"]
    assert lengths.changed(3) == []
