import pytest

import bitwright.export as export

FORMER = {
    "Quantized": "QuantizedTensor",
    "Report": "VerificationReport",
    "Row": "VerificationRow",
    "Sums": "AccumulatorRange",
    "compare": "compare_integers",
    "pack": "pack_integers",
    "unpack": "unpack_integers",
}


@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_works_and_warns(former):
    present = FORMER[former]
    said = f"^{former} is now {present}: the former name goes with version 0.3.$"
    with pytest.warns(DeprecationWarning, match=said) as caught:
        assert getattr(export, former) is getattr(export, present)
    assert [each.filename for each in caught] == [__file__]
    assert present in export.__all__
    assert former not in export.__all__


def test_a_former_name_is_imported():
    with pytest.warns(DeprecationWarning, match="^pack is now pack_integers") as caught:
        from bitwright.export import pack
    assert pack is export.pack_integers
    assert {each.filename for each in caught} == {__file__}


def test_other_names_are_unknown():
    with pytest.raises(AttributeError, match=r"^module 'bitwright\.export' has no attribute 'unpacked'$"):
        export.unpacked  # noqa: B018 - asked for
