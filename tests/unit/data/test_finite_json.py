# SPDX-License-Identifier: Apache-2.0
"""JSON files hold no NaN and no infinity."""

import json
import math

from anomalib_pose.data.files import write_json


def test_numbers_that_are_not_finite_become_null(tmp_path):
    content = {"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": "NaN", "d": 10**400}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text) == {"a": [1.5, None, [None, {"b": None}]], "c": "NaN", "d": 10**400}
