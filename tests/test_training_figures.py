"""Pictures of training draw what the batches and the log hold."""

from types import SimpleNamespace

import numpy as np
import pytest

from xsta_lib.batching import Row
from xsta_lib.training_figures import batch_shapes, padding_share, selection_curve, step_curves


@pytest.fixture
def data():
    """An English part and a German one with sources, lengths by hand, and three batches."""
    english = SimpleNamespace(language="en", target=SimpleNamespace(length=np.array([10, 20, 30])), source=None)
    german = SimpleNamespace(language="de", target=SimpleNamespace(length=np.array([40, 33])), source=english.target)
    batches = [[Row(0, 0, -1), Row(0, 1, -1)], [Row(1, 0, 2), Row(1, 1, 0)], [Row(0, 2, -1)]]
    return [english, german], batches


def test_padding_is_counted_by_hand(data):
    # 10 + 20 of 2 x 32, 40 + 33 of 2 x 64, 30 of 32
    assert padding_share(*data) == pytest.approx(1 - (30 + 73 + 30) / (64 + 128 + 32))
    assert padding_share(*data, multiple=1) == pytest.approx(1 - 133 / (40 + 80 + 30))


def test_batches_are_drawn_where_they_come(data):
    axes = batch_shapes(*data).axes[0]
    drawn = {c.get_label(): c.get_offsets().tolist() for c in axes.collections}
    assert drawn == {"en": [[0, 20], [2, 30]], "de": [[1, 40]]}


def test_curves_leave_out_what_a_step_lacks():
    log = [
        {"step": 1, "loss": 2.0, "learning_rate": 0.1, "grad_norm": 3.0},
        {"step": 2, "loss": 1.0, "learning_rate": 0.2, "grad_norm": 1.0, "teacher_mass": 0.7},
        {"step": 2, "validation_f1": 40.0},
    ]
    lines = [axes.lines[0].get_xydata().tolist() for axes in step_curves(log).axes]
    assert lines == [[[1, 0.1], [2, 0.2]], [[1, 3.0], [2, 1.0]], [[2, 0.7]]]
    marked = selection_curve([2, 4, 6], [10.0, 30.0, 20.0]).axes[0].collections[0].get_offsets().tolist()
    assert marked == [[4, 30.0]]
