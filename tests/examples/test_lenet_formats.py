import pytest

pytest.importorskip("rich.console")


@pytest.mark.slow
def test_some_formats(example, needs_digits, capsys):
    chosen = ["FP8 e4m3", "binary"]
    assert example("lenet_formats").main(["--fast", "--seeds", "1", "--formats", *chosen]) == 0
    printed = capsys.readouterr().out
    assert "LeNet-5 by bitwright: 200 test digits, 1 seed" in " ".join(printed.split())
    rows = {}
    for line in printed.splitlines():
        if "%" in line:
            name, *numbers = line.strip().rsplit("%", 3)
            rows[name.rsplit(maxsplit=1)[0].strip()] = numbers[-1].split()
    assert list(rows) == ["float", *chosen]
    weights = 61.47  # thousand, biases left out
    assert weights < float(rows["FP8 e4m3"][0]) < 1.5 * weights
    assert weights / 4 < float(rows["binary"][0]) < weights / 2
    assert rows["float"] == []


def test_unknown_format(example, capsys):
    with pytest.raises(SystemExit):
        example("lenet_formats").main(["--formats", "binery"])
    assert "bitwright has no 'binery' here, but 'FP8 e4m3', 'MXFP4 e2m1'" in capsys.readouterr().err
