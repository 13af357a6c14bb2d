import copy
import pickle

import pytest

from bitwright.graph.passes.reports import Entry, Report, listed

REPORT = Report(
    "equalize",
    (
        Entry("stem", "left", "no example reaches it"),
        Entry("block.conv1", "equalized", figures={"range before": 12.5, "range after": 0.123456}),
        Entry("fc", "equalized", "its input is padded"),
    ),
)


def test_text_lists_changes_first():
    assert str(REPORT) == (
        "equalize: 2 changed, 1 left\n"
        "  block.conv1  equalized (range before 12.5, range after 0.1235)\n"
        "  fc           equalized: its input is padded\n"
        "  stem         left: no example reaches it"
    )


def test_text_without_entries():
    assert str(Report("smooth", ())) == "smooth: 0 changed, 0 left"


def test_entries_by_path_and_number():
    assert [entry.path for entry in REPORT] == ["stem", "block.conv1", "fc"]
    assert len(REPORT) == 3
    assert REPORT["fc"].reason == "its input is padded"
    assert [entry.path for entry in REPORT.left] == ["stem"]
    with pytest.raises(KeyError, match="conv"):
        REPORT["conv"]


def test_dict():
    assert REPORT.as_dict() == {
        "call": "equalize",
        "entries": [
            {"path": "stem", "action": "left", "reason": "no example reaches it", "figures": {}},
            {
                "path": "block.conv1",
                "action": "equalized",
                "reason": "",
                "figures": {"range before": 12.5, "range after": 0.123456},
            },
            {"path": "fc", "action": "equalized", "reason": "its input is padded", "figures": {}},
        ],
    }


def test_figures_of_the_model():
    report = Report("absorb_biases", (Entry("fc", "absorbed"),), figures={"output moved": 0.00125})
    assert str(report) == "absorb_biases: 1 changed, 0 left (output moved 0.00125)\n  fc  absorbed"
    assert report.as_dict()["figures"] == {"output moved": 0.00125}


def test_listed():
    entries = [Entry(f"bn{number}", "left", "no example reaches it") for number in range(8)]
    assert listed(entries[:2]) == "bn0: no example reaches it. bn1: no example reaches it."
    assert listed(entries).endswith(" bn5: no example reaches it. And 2 more.")
    assert listed([Entry("", "left", "it is a layer")]) == "the model: it is a layer."
    assert listed([]) == ""


def test_copies_and_pickles():
    assert copy.deepcopy(REPORT) == REPORT
    assert pickle.loads(pickle.dumps(REPORT)) == REPORT
