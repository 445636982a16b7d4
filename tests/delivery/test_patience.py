"""Both kinds of patience against plain lines that do the same, and the figures that their docstrings give."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pipeline.delivery.patience import BatchPatience, RunPatience, SplitPatience

# A failed call that weighs 1/5, 1/3, a quarter of each; something accepted, and a probe that was; a refusal.
WEIGHTS = {
    "fifth": Fraction(1, 5),
    "third": Fraction(1, 3),
    "part": Fraction(1, 20),
    "part of a third": Fraction(1, 12),
}
CALLS = st.lists(st.sampled_from([*WEIGHTS, "accepted", "accepted probe", "refused"]), max_size=200)


def plainly_over(calls: list[str]) -> list[bool]:
    over, weights, patience = [], [Fraction(0)], 1
    for call in calls:
        if call in WEIGHTS:
            weights.append(WEIGHTS[call])
        else:
            weights = []
        if call == "accepted probe":
            patience = min(2 * patience, 64)
        if call == "accepted":
            patience = 1
        over.append(sum(weights) >= patience)
    return over


@given(CALLS)
def test_patience_of_a_run_is_over_when_the_plain_sum_says_so(calls: list[str]) -> None:
    patience = RunPatience()
    over = []
    for call in calls:
        if call in WEIGHTS:
            patience.fail(float(WEIGHTS[call]))
        elif call == "refused":
            patience.begin_anew()
        else:
            patience.succeed(is_probe=call == "accepted probe")
        over.append(patience.is_over)
    assert over == plainly_over(calls)


def test_ten_thousand_bad_records_in_a_row_cost_36_probes() -> None:
    patience, probes = RunPatience(), 0
    for _ in range(10_000):
        patience.fail(1 / 5)
        if patience.is_over:
            probes += 1
            patience.succeed(is_probe=True)
    assert probes == 36


# The answers to one batch's requests, up to 500 of them: whether each is refused.
BATCHES = st.lists(
    st.one_of(
        st.lists(st.booleans(), max_size=80),
        st.integers(0, 500).map(lambda count: [True] * count),
        st.integers(0, 250).map(lambda count: [True, False] * count),
    ),
    max_size=10,
)


def plainly_divided(batches: list[list[bool]]) -> list[list[bool]]:
    """For each answer: whether its records are divided."""
    divided, allowed = [], 63
    for batch in batches:
        refusals, answers = 0, []
        own = allowed
        for number, is_refused in enumerate(batch, 1):
            answers.append(is_refused and refusals < own and number < 400)
            refusals = refusals + answers[-1] if is_refused else 0
            own = own if is_refused else 63
        allowed = max(own // 2, 3) if refusals >= own else own if False in batch else allowed
        divided.append(answers)
    return divided


def divided(batches: list[list[bool]]) -> list[list[bool]]:
    shared, result = SplitPatience(), []
    for batch in batches:
        patience, of_batch = BatchPatience(shared), []
        for is_refused in batch:
            patience.count_request()
            of_batch.append(is_refused and patience.may_divide)
            if of_batch[-1]:
                patience.refuse()
            elif not is_refused:
                patience.succeed()
        patience.end()
        result.append(of_batch)
    return result


@given(BATCHES)
def test_a_batch_is_divided_as_often_as_the_plain_lines_divide_it(batches: list[list[bool]]) -> None:
    assert divided(batches) == plainly_divided(batches)


def test_a_thousand_batches_of_which_all_is_refused_cost_7_200_requests() -> None:
    shared, requests = SplitPatience(), 0
    for _ in range(1000):
        patience, pieces = BatchPatience(shared), [1000]
        while pieces:
            patience.count_request()
            requests += 1
            piece = pieces.pop(0)
            if piece > 1 and patience.may_divide:
                patience.refuse()
                pieces += [piece // 2, piece - piece // 2]
        patience.end()
    assert requests == 127 + 63 + 31 + 15 + 996 * 7 == 7208
