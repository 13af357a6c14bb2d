import torch

from benchmarks import ptq
from tests.graph.models.metrics import sqnr
from tests.graph.models.zoo import ZOO


def tiny():
    batches = ZOO["digit_cnn"].batches(2)
    repaired = ptq.Scheme(2, rotate=True, repair="GPTQ")
    schemes = (ptq.Scheme(8, 8, correct=True), ptq.Scheme(2), ptq.Scheme(2, mse=True), repaired)
    return ptq.Task(
        "tiny", ZOO["digit_cnn"].build(), batches, batches, schemes, lambda one, two: {"SQNR": sqnr(one, two)}
    )


def rows_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line]


def test_a_table_of_each_task(monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(ptq, "TASKS", {"tiny": tiny})
    ptq.main(["bitwright"])
    torch.set_num_threads(threads)
    header, _, *rows = rows_of(capsys.readouterr().out)
    assert header == ["tiny", "SQNR", "CPU s"]
    assert [name for name, *_ in rows] == [
        "float",
        "bitwright: W8A8, biases corrected",
        "bitwright: W2",
        "bitwright: W2, MSE scales",
        "bitwright: W2, rotated, GPTQ",
    ]
    assert all(float(seconds) > 0 for *_, seconds in rows[1:])
    many, few = float(rows[1][1]), float(rows[3][1])
    assert many > 25 > 15 > few > 0


def test_what_a_library_refuses_is_a_row(monkeypatch, capsys):
    def refuses(model, scheme, batches):
        if scheme.act_bits is None:
            return None
        raise ValueError("no")

    monkeypatch.setattr(ptq, "TASKS", {"tiny": tiny})
    monkeypatch.setattr(ptq.importlib.import_module("benchmarks.ptq_bitwright"), "WAYS", {"way": refuses})
    ptq.main(["bitwright", "tiny"])
    rows = rows_of(capsys.readouterr().out)[3:]
    assert rows == [["way: W8A8, biases corrected: ValueError: no", ""]]
