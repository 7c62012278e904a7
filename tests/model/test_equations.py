"""Every formula of X-STA against the NumPy reference in float64, and what bfloat16 autocast must spare."""

from collections.abc import Callable
from typing import Any

import compare
import pytest
import torch
from toy import HEADS, HIDDEN, PAIRED, both_passes, encoder_config, pair_batch, tiny_model
from transformers import BertModel

from xsta_lib.model import aligning, sharing, teaching

EQUATIONS = [
    ("3.1 span loss", compare.span_loss, ()),
    *(("3.2 correction", compare.correction, (n,)) for n in (compare.LONGER_TARGET, compare.LONGER_SOURCE)),
    *(("3.3 Rep-Norm", compare.rep_norm, (statistics,)) for statistics in teaching.STATISTICS),
    ("3.3 epsilon", compare.small_variance, ()),
    *(("3.3 teacher", compare.attentive_teacher, (form,)) for form in teaching.TEACHER_FORMS),
    ("3.3 teacher loss", compare.teacher_loss, ()),
    ("3.4 sentence vector", compare.sentence_vector, ()),
    ("3.4 sentence alignment", compare.sentence_alignment, ()),
    ("3.4 token alignment", compare.token_alignment, ()),
    ("3.4 token alignment of the release", compare.token_alignment_release, ()),
    *(("3.2 the whole layer", compare.whole_layer, (preset,)) for preset in PAIRED),
    *(("3.3 distributions", compare.distributions, (preset,)) for preset in PAIRED),
    *(("3.5 objective", compare.objective, (preset,)) for preset in PAIRED),
    ("3.5 S = T", compare.own_source, ()),
    ("3.5 S = T, release", compare.own_source, ("release",)),
    ("3.5 S = T, span loss", compare.target_alone, ()),
]


@pytest.mark.parametrize(("equation", "comparison", "arguments"), EQUATIONS, ids=[row[0] for row in EQUATIONS])
def test_equation(equation: str, comparison: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    comparison(*arguments)


@pytest.mark.parametrize("lengths", [compare.LONGER_TARGET, compare.LONGER_SOURCE], ids=["target", "source"])
@pytest.mark.parametrize("keep", [True, False], ids=["softmax", "sdpa"])
@pytest.mark.parametrize("weighting", sharing.WEIGHTINGS)
@pytest.mark.parametrize("mode", ["gdks", "cross-attention"])
def test_sharing(mode: str, weighting: str, keep: bool, lengths: tuple) -> None:
    compare.sharing_attention(mode, weighting, keep, lengths)


def test_initial_lambda() -> None:
    encoder = BertModel(encoder_config(), add_pooling_layer=False)
    assert sharing.install_sharing(encoder, 1, "gdks").mixing().item() == pytest.approx(0.3)


@pytest.mark.parametrize("preset", [*PAIRED, "mixup"])
def test_autocast_keeps_losses_in_float32(preset: str) -> None:
    """Under bfloat16 autocast losses and distributions are float32, and the loss stays close to the float64 one."""
    model, batch = tiny_model(preset), pair_batch()
    with torch.autocast("cpu", torch.bfloat16):
        output = both_passes(model, batch)
    exact = both_passes(tiny_model(preset).double(), batch)
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=3e-2)
    values = [output.loss, output.start_logits, output.target, output.teacher, output.calibrated, output.teacher_mass]
    assert {value.dtype for value in [*values, *output.losses.values()] if value is not None} == {torch.float32}


@pytest.mark.parametrize("form", teaching.TEACHER_FORMS)
def test_autocast_spares_the_teachers_transfer(form: str) -> None:
    """The values are moved in float32: with the attention of autocast, as by hand; rounded values would be seen."""
    h_t, h_s, m_t, m_s = (value.float() for value in compare.random_pair())
    values = compare.normal(*m_s.shape, 2, seed=1).float().softmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = teaching.AttentiveTeacher(HIDDEN, HEADS, form)(h_t, h_s, values, m_t, m_s)
    moved = (found.attention @ values) * (1 if form == "logits" else m_t[..., None])
    expected = {"raw": moved, "renormalised": moved / moved.sum(1, keepdim=True)}.get(form)
    if expected is None:
        expected = teaching.masked_softmax(moved, m_t)
    torch.testing.assert_close(found.p, expected, rtol=1e-6, atol=1e-6)


def test_autocast_spares_the_sentence_alignment() -> None:
    """At temperature 0.05 a cosine rounded to bfloat16 would be wrong by up to 0.08."""
    vectors = compare.normal(5, HIDDEN, seed=9).float(), compare.normal(5, HIDDEN, seed=10).float()
    exact = aligning.sentence_alignment(*vectors, torch.arange(5))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = aligning.sentence_alignment(*vectors, torch.arange(5))
    torch.testing.assert_close(rounded, exact, rtol=1e-6, atol=1e-6)
