import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.graph.regions.scales import Scales, distinct, moved


def test_channels_are_new_ids_along_one_axis():
    scales = Scales()
    scales.channels((1, 2), 1)
    assert scales.channels((2, 3), 1).tolist() == [[2, 3, 4], [2, 3, 4]]
    assert scales.channels((2, 2), 0).tolist() == [[5, 5], [6, 6]]


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_classes_are_connected_components(count, links):
    scales = Scales()
    ids = scales.channels((count,), 0)
    links = [(a % count, b % count) for a, b in links]
    for a, b in links:
        scales.link(ids[a : a + 1], ids[b : b + 1])
    component = {each: {each} for each in range(count)}
    for a, b in links:
        joined = component[a] | component[b]
        for each in joined:
            component[each] = joined
    classes = scales.classes()
    numbers = classes.of(ids).tolist()
    assert classes.count == len({frozenset(each) for each in component.values()})
    for a in range(count):
        for b in range(count):
            assert (numbers[a] == numbers[b]) == (b in component[a])


def test_long_chain():
    scales = Scales()
    parts = [scales.channels((3,), 0) for _ in range(200)]
    for one, other in zip(parts[1:], parts[:-1], strict=True):
        scales.link(one, other)
    classes = scales.classes()
    assert classes.count == 3
    assert torch.equal(classes.of(parts[0]), classes.of(parts[-1]))


def test_first_reason_stays_and_holds_the_class():
    scales = Scales()
    ids = scales.channels((2, 3), 1)
    scales.hold(ids[:, 1:], "first")
    scales.hold(ids, "second")
    scales.link(ids[:, :1], ids[:, 1:2])
    classes = scales.classes()
    assert [classes.why_held(each) for each in classes.of(ids)[0].tolist()] == ["first", "first", "first"]
    assert classes.held(classes.of(ids)[0]).tolist() == [True, True, True]


def test_holds():
    scales = Scales()
    ids = scales.channels((4,), 0)
    scales.hold(ids[:2], "why")
    assert scales.holds(ids[:2])
    assert not scales.holds(ids[1:3])
    assert scales.holds(scales.fixed((2, 2), "why"))


@pytest.mark.parametrize(("dims", "count"), [((0,), 3), ((1,), 3), ((0, 1), 1)])
def test_link_along(dims, count):
    """3 channels along dimension 1 of (2, 3): dimension 0 is repetition, and dimension 1 makes them one."""
    scales = Scales()
    ids = scales.channels((2, 3), 1)
    assert scales.link_along(ids, dims).shape == tuple(1 if dim in dims else size for dim, size in enumerate((2, 3)))
    assert scales.classes().count == (1 if 1 in dims else 3)


def test_link_all():
    scales = Scales()
    ids = scales.channels((2, 3), 1)
    assert scales.link_all(ids, (4, 1, 5)).shape == (4, 1, 5)
    assert scales.classes().count == 1


def test_distinct_of_repetitions():
    """A tensor that is nothing but repetition would not fit into memory."""
    assert distinct(torch.tensor([5, 2, 5]).reshape(1, 3, 1).expand(10**6, 3, 10**6)).tolist() == [2, 5]


@given(st.booleans())
def test_moved_is_what_the_function_makes_of_the_whole(repeated):
    ids = torch.arange(6).reshape(1, 2, 3)
    ids = ids.expand(4, 2, 3) if repeated else torch.arange(24).reshape(4, 2, 3)
    expected = ids.repeat_interleave(2, 1)
    assert torch.equal(moved(ids, lambda part: part.repeat_interleave(2, 1), (1,), (4, 4, 3)), expected)
