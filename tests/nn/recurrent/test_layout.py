"""The forms of sequences."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from bitwright.nn.recurrent.layout import Layout, packed_scan


def add(states, inputs, constants):
    total = states[0] + inputs[0]
    return (total,), (total,)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_packed_sums_are_those_of_each_sequence(lengths, reverse, given_state):
    """Sums over whole numbers: each sequence by itself, from its own first state."""
    sequences = [torch.arange(1.0, n + 1).reshape(n, 1) * 10**k for k, n in enumerate(lengths)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    layout = Layout.of(packed, batch_first=False)
    first = torch.arange(0.5, len(lengths)).reshape(1, -1, 1) if given_state else torch.zeros(1, len(lengths), 1)
    states, out = packed_scan(add, (layout.state(first)[0],), packed.data, (), layout.sizes, reverse)
    last = layout.state_given_back(states[0][None])[0]
    padded, _ = pad_packed_sequence(packed._replace(data=out))
    for k, sequence in enumerate(sequences):
        steps = (sequence.flip(0) if reverse else sequence).cumsum(0) + first[0, k]
        expected = steps.flip(0) if reverse else steps
        assert torch.equal(padded[: len(sequence), k], expected)
        assert last[k].item() == sequence.sum().item() + first[0, k].item()


def test_time_comes_first():
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(Layout(True, True).time_first(x), x.transpose(0, 1))
    assert Layout(True, False).time_first(x) is x
    assert Layout(False, True).time_first(x[0]).shape == (3, 1, 4)
    for layout, given_x in ((Layout(True, True), x), (Layout(True, False), x), (Layout(False, False), x[0])):
        assert torch.equal(layout.given_back(layout.time_first(given_x)), given_x)
        rows, sizes = layout.rows(layout.time_first(given_x))
        assert sizes is None
        assert torch.equal(layout.as_before(rows, layout.time_first(given_x)), layout.time_first(given_x))


def test_a_loop_backwards_is_one_over_the_reversed():
    x = torch.arange(1.0, 5).reshape(4, 1, 1)
    (state,), out = Layout(True, False).run(add, (torch.zeros(1, 1),), x, (), reverse=True)
    assert out.flatten().tolist() == [10.0, 9.0, 7.0, 4.0]
    assert state.item() == 10.0
