"""The declaration language. These tests need neither torch nor anything else but `dependencies` and pytest."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from bitwright.qcore.declare.inject import (
    IMPLIED,
    ROOT,
    Quantizer,
    QuantizerType,
    Setting,
    _choices,
    diff,
    register_choices,
    resolution,
    resolve,
    settings,
    value,
)
from bitwright.qcore.errors import QuantizerError, ReadOnlyError, SettingError

AROUND = Path(__file__).parents[3]  # where a subprocess finds bitwright, if it is not installed


class Wheel:
    def __init__(self, radius, spokes=8):
        self.radius, self.spokes = radius, spokes


class Engine:
    def __init__(self, wheel, power):
        self.wheel, self.power = wheel, power


class Car:
    def __init__(self, wheel, engine=None):
        self.wheel, self.engine = wheel, engine


class Base(Quantizer):
    tensor_quant = Car
    wheel = Wheel
    radius = 3


class Spoked(Quantizer):
    spokes = 20


class Racer(Spoked, Base):
    engine = Engine
    radius = 5

    @value
    def power(radius, spokes):  # noqa: N805
        return radius * spokes


def run(*arguments, path=()):
    """What a fresh interpreter prints; ``path`` comes first on its search path."""
    places = [*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=AROUND,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# Declaring


def test_attributes_are_those_of_the_class():
    assert Base.radius == 3
    assert Base.wheel is Wheel
    assert "radius" in Base
    assert "spokes" not in Base
    assert ROOT == "tensor_quant"


def test_subclass_overrides_by_pythons_order():
    assert Racer.__mro__[:4] == (Racer, Spoked, Base, Quantizer)
    assert {name: item.owner for name, item in settings(Racer).items()} == {
        "tensor_quant": Base,
        "wheel": Base,
        "radius": Racer,
        "spokes": Spoked,
        "engine": Racer,
        "power": Racer,
    }
    assert settings(Racer)["radius"] == Setting("radius", 5, Racer)


def test_left_base_wins():
    class Left(Quantizer):
        radius = 1

    class Right(Quantizer):
        radius = 2

    class Both(Left, Right):
        pass

    class Diamond(Right, Base):
        wheel = Wheel

    assert settings(Both)["radius"].declared == 1
    assert resolve(Diamond).wheel.radius == 2


def test_keyword_derives_a_class():
    derived = Base(radius=4)
    assert isinstance(derived, QuantizerType)
    assert issubclass(derived, Base)
    assert derived.radius == 4
    assert Base.radius == 3
    assert derived.__name__ == derived.__qualname__ == "Base(radius=4)"
    assert derived.__module__ == __name__


def test_no_keyword_derives_nothing():
    assert Base() is Base
    assert Base(radius=4)() is Base(radius=4)


def test_keywords_of_derived_are_merged():
    assert Base(radius=4)(spokes=2) == Base(radius=4, spokes=2)
    assert Base(radius=4)(radius=5) == Base(radius=5)
    assert Base(radius=4)(spokes=2).__bases__ == (Base,)


def test_derived_can_be_subclassed():
    class Small(Base(radius=1)):
        spokes = 2

    assert (resolve(Small).wheel.radius, resolve(Small).wheel.spokes) == (1, 2)


def test_any_word_may_name_a_setting():
    assert Base(name=1, mcls=2, bases=3).bases == 3


def test_body_may_hold_annotations_and_dunders():
    class Annotated(Base):
        """A docstring."""

        radius: int = 4
        spokes: "Wheel | None"  # an annotation is no setting
        __slots__ = ()
        __private__ = "not a setting"

    assert "spokes" not in Annotated
    assert list(settings(Annotated)) == ["tensor_quant", "wheel", "radius"]
    assert resolve(Annotated).wheel.radius == 4
    assert Annotated.__doc__ == "A docstring."


def test_body_may_be_computed():
    made = QuantizerType("Made", (Base,), {"radius": 7, "__module__": __name__})
    assert resolve(made).wheel.radius == 7


def test_implied_settings():
    """`scale=` and `max_value=` ask for a constant scale, unless the scaling takes them anyway."""

    class Collected:
        def __init__(self, steps): ...

    class Learned:
        def __init__(self, max_value=None): ...

    class Scaled(Quantizer):
        scaling = Collected

    class Learning(Quantizer):
        scaling = Learned

    assert IMPLIED == {"scale": ("scaling", "constant"), "max_value": ("scaling", "constant")}
    assert Scaled(scale=0.5).scaling == "constant"
    assert Scaled(max_value=6.0).scaling == "constant"
    assert Scaled(steps=3).scaling is Collected
    assert Scaled(scale=0.5, scaling=Learned).scaling is Learned
    assert Learning(max_value=6.0).scaling is Learned
    assert Learning(scale=0.5).scaling == "constant"
    assert QuantizerType("Body", (Scaled,), {"scale": 2}).scaling == "constant"


# Resolving


def test_classes_are_instantiated_by_the_names_of_their_arguments():
    car = resolve(Base)
    assert type(car) is Car
    assert (car.wheel.radius, car.wheel.spokes, car.engine) == (3, 8, None)


def test_value_is_computed_from_attributes():
    assert resolve(Racer).engine.power == 100
    assert resolve(Racer(spokes=2)).engine.power == 10
    assert repr(Racer.power) == "value(power)"


def test_value_may_have_defaults():
    class Defaults(Base):
        @value
        def radius(length=6.0):  # noqa: N805
            return length / 2

    assert resolve(Defaults).wheel.radius == 3.0
    assert resolve(Defaults(length=8.0)).wheel.radius == 4.0
    assert resolution(Defaults, {}).defaults == {
        "radius": {"length": 6.0},
        "wheel": {"spokes": 8},
        ROOT: {"engine": None},
    }


def test_one_object_in_one_resolution():
    car, other = resolve(Racer), resolve(Racer)
    assert car.engine.wheel is car.wheel
    assert other.wheel is not car.wheel


def test_keyword_only_arguments():
    class Keyworded:
        def __init__(self, *, radius, spokes=1):
            self.made = radius, spokes

    assert resolve(Base(tensor_quant=Keyworded)).made == (3, 1)


def test_classes_without_a_constructor():
    class Plain:
        pass

    class Anything:
        def __init__(self, *args, **kwargs):
            self.made = args, kwargs

    class Inheriting(Anything):
        pass

    assert type(resolve(Base(wheel=Plain)).wheel) is Plain
    for _ in range(2):  # by the injector, then by what it found out
        assert resolve(Base(wheel=Inheriting)).wheel.made == ((), {})


def test_name_ending_in_class_is_handed_over_as_it_is():
    class Factory:
        def __init__(self, wheel_class, radius):
            self.made = wheel_class(radius)

    class Inheriting(Wheel):
        pass

    assert resolve(Base(tensor_quant=Factory, wheel_class=Wheel)).made.radius == 3
    assert type(resolve(Base(tensor_quant=Factory, wheel_class=Inheriting)).made) is Inheriting


def test_objects_and_functions_are_handed_over_as_they_are():
    wheel = Wheel(9)
    assert resolve(Base(wheel=wheel)).wheel is wheel
    assert resolve(Base(wheel=len)).wheel is len
    assert resolve(Base(wheel=run)).wheel is run


def test_layer_provides_what_the_quantizer_lacks():
    provided = {"spokes": 12, "radius": 99, "color": "red"}
    car = resolve(Base, provided)
    assert (car.wheel.spokes, car.wheel.radius) == (12, 3)


def test_what_was_resolved_once_is_resolved_alike():
    for spokes in (1, 2, 1):
        car = resolve(Base, {"spokes": spokes})
        assert (car.wheel.spokes, car.wheel.radius) == (spokes, 3)
    for radius in ([1], [2], {1}, {2}):  # also what can't be hashed
        assert resolve(Base(radius=radius)).wheel.radius == radius


def test_equal_is_not_alike():
    for number in (1, 1.0, True):
        assert type(resolve(Base(radius=number)).wheel.radius) is type(number)


def test_layers_that_provide_other_names():
    """Each set of names has a plan of its own."""
    assert resolve(Base, {"spokes": 2}).wheel.spokes == 2
    assert resolve(Base).wheel.spokes == 8
    assert resolve(Base, {"spokes": 3, "engine": "given"}).engine == "given"
    assert resolve(Base, {"engine": "given", "spokes": 4}).wheel.spokes == 4
    assert resolve(Base, {"spokes": 5}).engine is None
    assert resolve(Base, {"radius": 9}).wheel.radius == 3  # the quantizer's own come first


def test_each_resolution_makes_objects_of_its_own():
    one, other = resolve(Racer), resolve(Racer)
    assert one is not other
    assert one.wheel is not other.wheel
    assert one.engine.wheel is one.wheel


def test_a_constructor_that_resolves_another_quantizer():
    class Trailer:
        def __init__(self, spokes):
            self.wheel = resolve(Base, {"spokes": spokes + 1}).wheel

    class Long(Base):
        engine = Trailer

    car = resolve(Long, {"spokes": 2})
    assert (car.wheel.spokes, car.engine.wheel.spokes) == (2, 3)


def test_threads_resolve_each_for_their_own_layer():
    found = {}

    def build(number):
        found[number] = [resolve(Base, {"spokes": number}).wheel.spokes for _ in range(50)]

    threads = [threading.Thread(target=build, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == {number: [number] * 50 for number in range(4)}


def test_a_constructor_that_was_replaced():
    """As a notebook does that runs a cell again."""

    class Tyre:
        def __init__(self, radius):
            self.found = radius

    class Tyred(Base):
        wheel = Tyre

    assert resolve(Tyred).wheel.found == 3
    assert (
        mistake(Tyred(pressure=2))
        == "resolve: nothing in Tyred uses pressure = 2. It takes: engine, max_value, radius, scale, wheel."
    )

    def __init__(self, radius, pressure=1):  # noqa: N807
        self.found = (radius, pressure)

    Tyre.__init__ = __init__
    assert resolve(Tyred).wheel.found == (3, 1)
    assert resolve(Tyred(pressure=2)).wheel.found == (3, 2)
    Tyre.__init__ = lambda self, radius: setattr(self, "found", -radius)
    assert resolve(Tyred).wheel.found == -3
    assert (
        mistake(Tyred(pressure=2))
        == "resolve: nothing in Tyred uses pressure = 2. It takes: engine, max_value, radius, scale, wheel."
    )


def test_a_base_constructor_that_was_replaced():
    class Tyre:
        def __init__(self, radius):
            self.found = radius

    class Winter(Tyre):
        pass

    class Tyred(Base):
        wheel = Winter

    assert resolve(Tyred).wheel.found == 3
    Tyre.__init__ = lambda self, radius, spokes=7: setattr(self, "found", (radius, spokes))
    assert resolve(Tyred).wheel.found == (3, 7)


def test_nothing_outlives_a_quantizer():
    """Neither classes of the user's nor what resolving built."""

    def build():
        class Rim:
            def __init__(self, radius):
                self.radius = radius

        class Rimmed(Base):
            wheel = Rim

            @value
            def engine(radius):  # noqa: N805
                return radius

        derived = Rimmed(radius=7)
        car = resolve(derived)
        return [weakref.ref(each) for each in (Rim, Rimmed, derived, car, car.wheel)]

    found = build()
    gc.collect()
    gc.collect()  # what a derived quantizer builds on goes after it
    assert [each() for each in found] == [None] * 5


def test_no_object_outlives_its_layer():
    """While the quantizer lives on."""
    car = resolve(Racer, {"seat": object})
    found = [weakref.ref(car), weakref.ref(car.wheel), weakref.ref(car.engine)]
    del car
    gc.collect()
    assert [each() for each in found] == [None] * 3


def test_superseded_settings_are_no_error():
    """A later class replaced what used them."""

    class Solid:
        def __init__(self, weight=1):
            self.weight = weight

    class Superseding(Racer):
        wheel = Solid

    assert resolve(Superseding).wheel.weight == 1
    assert resolve(Base(wheel=Solid, weight=2)).wheel.weight == 2
    assert resolve(Racer(engine=None)).engine is None


def test_resolution_tells_who_uses_what():
    plan = resolution(Racer, {}, where="here", written={"spokes": "weight_spokes"})
    assert plan.children == {
        ROOT: ["wheel", "engine"],
        "wheel": ["radius", "spokes"],
        "radius": [],
        "spokes": [],
        "engine": ["wheel", "power"],
        "power": ["radius", "spokes"],
    }
    assert plan.consumers == {
        "wheel": [ROOT, "engine"],
        "engine": [ROOT],
        "radius": ["wheel", "power"],
        "spokes": ["wheel", "power"],
        "power": ["engine"],
    }
    assert plan.defaults == {}
    assert plan.unused() == []


# Choices by name


class Tall:
    def __init__(self, radius, height=1):
        self.radius, self.height = radius, height


def test_a_value_may_return_a_class():
    """It is instantiated, as it would be if it stood there."""

    class Chosen(Base):
        @value
        def wheel(radius):  # noqa: N805
            return Tall if radius > 3 else Wheel

    register_choices("wheel", {"tall": Tall, "plain": Wheel})
    try:
        small, large = resolve(Chosen).wheel, resolve(Chosen(radius=4, height=9)).wheel
        assert (type(small), small.radius, type(large), large.radius, large.height) == (Wheel, 3, Tall, 4, 9)
        assert mistake(Chosen(height=9)) == (
            "resolve: nothing in Chosen uses height = 9. It takes: engine, max_value, radius, scale, spokes, wheel."
        )
    finally:
        del _choices["wheel"]


def test_a_value_may_return_the_name_of_a_choice():
    class Chosen(Base):
        @value
        def wheel(radius):  # noqa: N805
            return "tall" if radius > 3 else "plain"

    register_choices("wheel", {"tall": Tall, "plain": Wheel})
    try:
        assert type(resolve(Chosen).wheel) is Wheel
        assert type(resolve(Chosen(radius=4)).wheel) is Tall
        assert type(resolve(Chosen, {"spokes": 2}).wheel) is Wheel
        assert resolve(Chosen, {"spokes": 2}).wheel.spokes == 2
    finally:
        del _choices["wheel"]


def test_a_value_may_return_the_root():
    class Chosen(Base):
        @value
        def tensor_quant(radius):  # noqa: N805
            return Tall if radius > 3 else Car

    assert type(resolve(Chosen)) is Car
    assert resolve(Chosen(radius=4, height=2)).height == 2


def test_a_value_that_returns_an_object_hides_no_mistake():
    class Chosen(Base):
        @value
        def wheel(radius):  # noqa: N805
            return Wheel(radius)

    register_choices("wheel", {"plain": Wheel})
    try:
        assert resolve(Chosen).wheel.radius == 3
        assert mistake(Chosen(radios=9)) == "resolve: nothing in Chosen uses radios = 9. Did you mean radius?"
    finally:
        del _choices["wheel"]


@pytest.fixture
def choices():
    table = {"small": Wheel, "none": dict}
    assert register_choices("tyre", table) is table
    return table


def test_string_stands_for_a_class(choices):
    assert Setting("tyre", "small", None).injected is Wheel
    assert Setting("tyre", Wheel, None).injected is Wheel
    assert Setting("other", "small", None).injected == "small"


def test_unknown_choice(choices):
    class Tyred:
        def __init__(self, tyre): ...

    class Declared(Quantizer):
        tensor_quant = Tyred
        tyre = "smal"

    with pytest.raises(SettingError) as error:
        resolve(Declared, where="Layer")
    assert str(error.value) == (
        "Layer: in Declared, tyre='smal' is not possible: expected one of 'small', 'none'. Write tyre='small'."
    )
    with pytest.raises(SettingError) as error:
        resolve(Declared(tyre="huge"), where="Layer", written={"tyre": "weight_tyre"})
    assert str(error.value) == "Layer: weight_tyre='huge' is not possible: expected one of 'small', 'none'."


# Values


def test_equal_when_built_alike():
    assert Base(radius=4) == Base(radius=4)
    assert Base(radius=4, spokes=2) == Base(spokes=2, radius=4)
    assert Base(radius=4) != Base(radius=5)
    assert Base(radius=4) != Racer(radius=4)
    assert Base(radius=1) != Base(radius=1.0)
    assert Base(radius=1) != Base(radius=True)
    assert Base(radius=3) != Base
    assert Base != "Base"
    assert Base(radius={"a": [1, 2]}) == Base(radius={"a": [1, 2]})
    assert Base(radius={"a": [1, 2]}) != Base(radius={"a": [1, 3]})
    assert Base(radius=(1, 2)) != Base(radius=[1, 2])
    assert Base(wheel=Wheel) == Base(wheel=Wheel)


def test_equal_have_equal_hashes():
    assert hash(Base(radius=4, spokes=2)) == hash(Base(spokes=2, radius=4))
    one, other = Base(radius={4}, spokes=2), Base(spokes=2, radius={4})  # a set can't be hashed
    assert one is not other
    assert one == other
    assert hash(one) == hash(other)
    assert {one, other, Base(radius=4), Base(radius=4), Base} == {one, Base(radius=4), Base}


def test_functions_are_told_apart_by_what_they_do():
    def times(factor):
        return lambda x: factor * x

    two, three = Base(wheel=times(2)), Base(wheel=times(3))
    assert two != three
    assert resolve(three).wheel(1) == 3
    assert Base(wheel=times(2)) == two
    assert Base(wheel=lambda x: x + 1) != Base(wheel=lambda x: x + 2)


def test_keyword_only_defaults_count():
    def make(number):
        class Made(Base):
            @value
            def radius(*, size=number):
                return size

        return Made

    assert make(8) == make(8)
    assert hash(make(8)) == hash(make(8))
    assert make(8) != make(4)
    assert (resolve(make(8)).wheel.radius, resolve(make(4)).wheel.radius) == (8, 4)
    assert Base(wheel=lambda *, by=1: by) != Base(wheel=lambda *, by=2: by)


def test_arrays_are_compared_whole():
    class Array:
        """What numpy, torch and the like have in common."""

        dtype, shape = "float32", (2,)

        def __init__(self, *numbers):
            self.numbers = numbers

        def tolist(self):
            return list(self.numbers)

        def __eq__(self, other):
            raise TypeError("no single truth value")

        __hash__ = None  # type: ignore[assignment]

    assert Base(radius=Array(1, 2)) == Base(radius=Array(1, 2))
    assert Base(radius=Array(1, 2)) != Base(radius=Array(1, 3))


def test_classes_made_in_functions_are_equal_by_content():
    def make(radius):
        class Local(Base):
            pass

        return QuantizerType("Local", (Base,), {"radius": radius, "__qualname__": Local.__qualname__})

    assert make(2) == make(2)
    assert hash(make(2)) == hash(make(2))
    assert make(2) != make(3)
    assert make(2)(spokes=1) == make(2)(spokes=1)


def test_printed_as_the_expression_that_makes_them():
    derived = Racer(radius=4, wheel=Wheel, engine=None, spokes=(1, 2), color="red")
    assert repr(Racer) == "Racer"
    assert repr(derived) == "Racer(radius=4, wheel=Wheel, engine=None, spokes=(1, 2), color='red')"
    assert eval(repr(derived)) == derived
    assert repr(Base(wheel=run)) == "Base(wheel=run)"


def test_copies_are_the_same():
    for each in (Base, Base(radius=4), Racer(radius=[1])):
        assert copy.copy(each) is each
        assert copy.deepcopy(each) is each
        assert copy.deepcopy({"quantizer": [each]}) == {"quantizer": [each]}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol):
    class Local(Racer):
        """Made in a function."""

        radius = 2

    for each in (Base, Racer, Base(radius=4), Racer(wheel=Wheel)(radius=[1]), Local, Local(spokes=1)):
        again = pickle.loads(pickle.dumps(each, protocol))
        assert again == each
        assert hash(again) == hash(each)
        assert repr(again) == repr(each)
    assert pickle.loads(pickle.dumps(Racer, protocol)) is Racer
    assert pickle.loads(pickle.dumps(Base(radius=4), protocol)) is Base(radius=4)
    assert pickle.loads(pickle.dumps(Local, protocol)).__doc__ == "Made in a function."


MINE = """
from bitwright.qcore.declare.inject import Quantizer, value

class Holder:
    def __init__(self, bits, levels):
        self.made = bits, levels

class Mine(Quantizer):
    tensor_quant = Holder
    bits: int = 4

    @value
    def levels(bits):
        return 2**bits

class Shelf:
    class Inner(Quantizer):
        depth = 1

def local(bits=None):
    class Local(Mine):
        pass
    return Local(bits=bits) if bits else Local

def make():
    Inner = Shelf.Inner
    return [Mine, Mine(bits=2), Inner, Inner(depth=3), local(), local(3), {Mine(bits=2): 1}]
"""


@pytest.mark.slow
def test_pickle_from_another_process(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    dump = (
        "import pickle, sys, mine\n"
        f"with open({str(tmp_path / 'all.pickle')!r}, 'wb') as file:\n"
        "    pickle.dump(mine.make(), file)\n"
    )
    load = (
        "import pickle, sys, mine; from bitwright.qcore.declare.inject import resolve\n"
        f"with open({str(tmp_path / 'all.pickle')!r}, 'rb') as file:\n"
        "    all = pickle.load(file)\n"
        "print(*all)\n"
        "print(all == mine.make(), resolve(all[1]).made, resolve(all[4]).made)\n"
    )
    run("-c", dump, path=[tmp_path])
    assert run("-c", load, path=[tmp_path]) == (
        "Mine Mine(bits=2) Inner Inner(depth=3) Local Local(bits=3) {Mine(bits=2): 1}\nTrue (2, 4) (4, 16)\n"
    )


def test_immutable():
    with pytest.raises(ReadOnlyError) as error:
        Base.radius = 4
    assert str(error.value) == "Base is a value and can't be changed. Derive another: Base(radius=4), or a subclass."
    with pytest.raises(ReadOnlyError) as error:
        del Base(spokes=1).radius
    assert str(error.value) == (
        "Base(spokes=1) is a value and can't be changed. Derive another, with radius set as you need."
    )
    assert Base.radius == 3


def test_assignment_fails_as_pythons_own_tools_expect():
    """IPython's `%autoreload` sets the attributes of a new class on the old one, and passes over `AttributeError`."""

    class Old(Base):
        radius = 4

    class New(Base):
        radius = 5

    resolve(Old)
    for name in list(Old.__dict__):
        if getattr(Old, name) is not getattr(New, name, None):
            with pytest.raises(AttributeError):
                setattr(Old, name, getattr(New, name, None))
            with pytest.raises(AttributeError):
                delattr(Old, name)
    assert (Old.radius, resolve(Old).wheel.radius) == (4, 4)


def test_diff():
    assert diff(Base, Base) == {}
    assert diff(Base, Base(radius=3)) == {}
    assert diff(Base, Base(radius=3.0)) == {"radius": (3, 3.0)}
    assert diff(Base, Base(radius=4, spokes=2)) == {"radius": (3, 4), "spokes": (..., 2)}
    assert diff(Racer, Base) == {
        "radius": (5, 3),
        "spokes": (20, ...),
        "engine": (Engine, ...),
        "power": (Racer.power, ...),
    }


# Imports


def test_import_survives_warnings_turned_into_errors():
    """`dependencies` deprecates itself on import."""
    assert (
        run("-W", "error", "-c", "from bitwright.qcore.declare.inject import Quantizer; print(Quantizer)")
        == "Quantizer\n"
    )


# Mistakes


def mistake(quantizer, provided=None, **keywords):
    with pytest.raises(QuantizerError) as error:
        resolve(quantizer, provided, **keywords)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return str(error.value)


def test_misspelt_attribute():
    class Misspelt(Base):
        raduis = 4

    assert mistake(Misspelt) == "resolve: nothing in Misspelt uses raduis = 4. Did you mean radius?"
    assert mistake(Misspelt(radius=2), where="Layer(4)") == (
        "Layer(4): nothing in Misspelt uses raduis = 4 (set by Misspelt). Did you mean radius?"
    )


def test_misspelt_keyword():
    assert mistake(Base(spoke=4), where="Layer(4)", written={"spoke": "weight_spoke"}) == (
        "Layer(4): nothing in Base uses weight_spoke=4. Did you mean weight_spokes?"
    )


def test_attribute_that_nothing_uses():
    class Fragment(Quantizer):
        temperature = Wheel

    class Colored(Fragment, Base):
        pass

    assert mistake(Colored) == (
        "resolve: nothing in Colored uses temperature = Wheel (set by Fragment). It takes: engine, max_value, radius, "
        "scale, spokes, wheel."
    )


def test_keyword_that_nothing_uses_any_more():
    """Unlike a superseded class attribute, it was given on purpose."""

    class Solid:
        pass

    assert mistake(Base(wheel=Solid, spokes=3), {"device": None}) == (
        "resolve: nothing in Base uses spokes = 3. It takes: engine, max_value, scale, wheel."
    )


def test_fragment():
    assert mistake(Spoked, where="Layer(4)") == (
        "Layer(4): Spoked has no attribute 'tensor_quant', so it is a fragment, not a quantizer. Build on a complete "
        "one: class SpokedWeight(Spoked, Int8WeightPerTensor)."
    )


def test_missing_attribute():
    class Missing(Quantizer):
        tensor_quant = Car
        wheel = Wheel

    class Renamed(Missing):
        radus = 3

    assert mistake(Missing) == (
        "resolve: Wheel asks for 'radius', which Missing does not have (tensor_quant > wheel > radius). Write "
        "`radius = ...` in the quantizer, or give the argument a default."
    )
    assert mistake(Renamed) == (
        "resolve: Wheel asks for 'radius', which Renamed does not have (tensor_quant > wheel > radius). It has "
        "'radus': rename one of the two, or write `radius = ...` in the quantizer, or give the argument a default."
    )


def test_missing_attribute_of_an_optional_value():
    """An optional argument whose value function lacks something is not left out silently."""

    class Powered(Base):
        @value
        def engine(power):  # noqa: N805
            return power

    assert mistake(Powered) == (
        "resolve: value(engine) asks for 'power', which Powered does not have (tensor_quant > engine > power). Write "
        "`power = ...` in the quantizer, or give the argument a default."
    )


def test_circle():
    class Circular(Base):
        @value
        def radius(wheel):  # noqa: N805
            return wheel.radius

    assert mistake(Circular) == (
        "resolve: Circular goes in a circle: wheel > radius > wheel. Break it with a plain value."
    )


@pytest.mark.parametrize("written", ["*args", "**kwargs", "*radius: int"])
def test_constructor_that_takes_anything(written):
    scope = {}
    exec(f"class Any:\n    def __init__(self, {written}): ...", scope)
    assert mistake(Base(wheel=scope["Any"])) == (
        f"Any.__init__ takes {written}: attributes are handed in by name. Write every argument out, with its name."
    )


def test_positional_only_argument():
    class Positional:
        def __init__(self, radius, /): ...

    assert mistake(Base(wheel=Positional)) == (
        "Positional.__init__ takes radius: attributes are handed in by name. Write every argument out, with its name."
    )


def test_value_that_takes_anything():
    class Anything(Base):
        @value
        def radius(*sizes):
            return sizes

    assert mistake(Anything) == (
        "radius takes *sizes: attributes are handed in by name. Write every argument out, with its name."
    )


def test_value_that_is_no_function():
    with pytest.raises(QuantizerError) as error:
        value(Wheel)
    assert str(error.value) == (f"@value marks a function, not {Wheel!r}. Write `name = ...` for anything else.")


def test_base_that_is_no_quantizer():
    with pytest.raises(QuantizerError) as error:

        class Mixed(Base, Wheel):
            pass

    assert str(error.value) == (
        "Mixed has the base Wheel, which is not a quantizer. Put Wheel into an attribute of Mixed, such as "
        "`scaling = Wheel`."
    )


def test_dunder_keyword():
    with pytest.raises(QuantizerError) as error:
        Base(radius=4)(__module__="mine")
    assert str(error.value) == "Base: __module__ can't be a setting, names with two underscores are Python's."


def test_default_that_is_a_class():
    class Choosy:
        def __init__(self, wheel=Wheel): ...

    class Declared(Quantizer):
        tensor_quant = Choosy

    assert mistake(Declared, where="Layer") == (
        "Choosy.__init__ has the class Wheel as default of 'wheel', and defaults are handed in as they are. Write "
        "`wheel = Wheel` in the quantizer, which makes an instance, or name the argument wheel_class."
    )


def test_root_that_is_no_class():
    assert mistake(Base(tensor_quant=3)) == (
        "resolve: Base(tensor_quant=3) has tensor_quant = 3, and it must be a class, such as IntQuant or a subclass of "
        "TensorQuant."
    )


def refusing(setting):
    class Refusing:
        def __init__(self, radius):
            raise SettingError(setting, radius, "a whole number", f"Write {setting}=3.")

    return Refusing


def test_refused_setting_is_located():
    """Where the value came from: a keyword of the layer, the class, or what the layer provided."""
    tail = "is not possible: expected a whole number. Write"
    keyworded = Base(radius=4.5, wheel=refusing("radius"))
    assert mistake(keyworded, where="Layer", written={"radius": "weight_radius"}) == (
        f"Layer: weight_radius=4.5 {tail} weight_radius=3."
    )
    assert mistake(Base(wheel=refusing("radius")), where="Layer") == f"Layer: in Base, radius=3 {tail} radius=3."

    class Provided(Quantizer):
        tensor_quant = refusing("radius")

    assert mistake(Provided, {"radius": 1}, where="Layer") == f"Layer: radius=1 {tail} radius=3."


def test_refused_setting_by_another_name():
    """A constructor may name a setting that the quantizer does not have."""
    assert mistake(Base(wheel=refusing("size")), where="Layer") == (
        "Layer: in Base(wheel=Refusing), size=3 is not possible: expected a whole number. Write size=3."
    )


def test_refusal_is_not_remembered_as_success():
    for _ in range(2):
        assert mistake(Base(radius=4.5, wheel=refusing("radius"))).startswith("resolve: in Base(radius=4.5")
