"""Packed rows, step by step."""

import torch

from bitwright.nn.recurrent.sequence.order import Order

ROWS = torch.arange(6)


def test_steps_of_one_size() -> None:
    order = Order(6, 2, None, reverse=False)
    assert order.sizes == [2, 2, 2]
    assert order.even
    assert [each.tolist() for each in order.each(ROWS)] == [[0, 1], [2, 3], [4, 5]]
    assert order.turns() == [None, None, None]


def test_a_step_that_is_smaller_than_the_batch_is_not_even() -> None:
    assert not Order(4, 3, [2, 2], reverse=False).even


def test_turns_say_how_many_rows_come_next() -> None:
    assert Order(6, 3, [3, 2, 1], reverse=False).turns() == [2, 1, None]
    assert Order(6, 3, [3, 2, 1], reverse=True).turns() == [2, 3, None]


def test_states_grow_and_shrink() -> None:
    order = Order(3, 2, [2, 1], reverse=True)
    state, first = torch.tensor([[1.0]]), torch.tensor([[8.0], [9.0]])
    assert order.resized(state, first, 2).tolist() == [[1.0], [9.0]]
    assert order.resized(first, first, 1).tolist() == [[8.0]]


def test_the_last_states_are_those_of_each_sequence() -> None:
    first = torch.zeros(3)
    states = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0]), torch.tensor([6.0])]
    assert Order(6, 3, [3, 2, 1], reverse=False).last(states, first).tolist() == [6.0, 5.0, 3.0]
    assert Order(6, 3, [3, 2, 1], reverse=True).last(states[::-1], first).tolist() == [1.0, 2.0, 3.0]


def test_gradients_go_back_to_where_states_came_from() -> None:
    last, first = torch.tensor([[7.0], [8.0]]), torch.zeros(2, 1)
    ended = Order(3, 2, [2, 1], reverse=False)
    assert ended.returned(torch.tensor([[1.0]]), last, first, 2).tolist() == [[1.0], [8.0]]
    began = Order(3, 2, [2, 1], reverse=True)
    assert began.returned(torch.tensor([[1.0], [2.0]]), last, first, 1).tolist() == [[1.0]]
    assert first.tolist() == [[0.0], [2.0]]


def test_the_states_before_every_step() -> None:
    states, first = torch.arange(1.0, 5.0)[:, None], torch.tensor([[8.0], [9.0]])

    def before(sizes: list[int], reverse: bool) -> list[float]:
        found = torch.zeros(4, 1)
        for at, rows in Order(4, 2, sizes, reverse).before(states, first):
            found[at] = rows
        return found.reshape(-1).tolist()

    assert before([2, 2], reverse=False) == [8, 9, 1, 2]
    assert before([2, 2], reverse=True) == [3, 4, 8, 9]
    assert before([2, 1, 1], reverse=False) == [8, 9, 1, 3]
    assert before([2, 1, 1], reverse=True) == [3, 9, 4, 8]


def test_scratch_is_the_same_memory_at_every_step() -> None:
    whole, left, right = Order(6, 3, [3, 2, 1], reverse=False).scratch(torch.zeros(1), 2, 1)
    assert [tuple(each.shape) for each in whole] == [(3, 3), (2, 3), (1, 3)]
    right[0].fill_(1.0)
    left[2].fill_(2.0)
    assert whole[1].tolist() == [[2.0, 2.0, 1.0], [whole[1][1, 0].item(), whole[1][1, 1].item(), 1.0]]
