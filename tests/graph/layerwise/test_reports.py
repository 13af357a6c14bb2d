"""What a report writes."""

import json
import math

from bitwright.graph import Entry, LayerwiseReport


def test_figures_that_are_not_finite_are_null(tmp_path):
    entry = Entry("fc", "left", "its inputs aren't finite", {"before": math.inf, "after": math.nan, "rows": 8.0})
    report = LayerwiseReport("gptq", (entry,))
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == {
        "call": "gptq",
        "entries": [
            {
                "path": "fc",
                "action": "left",
                "reason": "its inputs aren't finite",
                "figures": {"before": None, "after": None, "rows": 8.0},
            }
        ],
    }
    assert report["fc"].figures["before"] == math.inf
