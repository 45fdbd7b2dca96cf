from __future__ import annotations

import pytest
from toys import WORDS, make_static_encoder, make_words_data

import hf_xmc
from hf_xmc.memory import MemoryForm
from hf_xmc.runs.calibration import calibrate_held_out
from hf_xmc.runs.record import RunRecord


@pytest.mark.parametrize("form", [None, MemoryForm(row_weight=0.0), MemoryForm(0.3, 10.0, 20)])
def test_a_calibration_is_carried_to_another_retriever_of_the_same_form(form: MemoryForm | None) -> None:
    development = make_words_data(200).hold_out(0.5, by="row", answerable_only=True)
    encoder, record = make_static_encoder(), RunRecord({})
    fitted = calibrate_held_out(encoder, development, form, record)
    assert fitted is not None and record.notes[0].startswith("calibration: fitted on ")
    votes = form is not None and form.row_weight > 0
    assert fitted.calibration.memory == votes
    final = hf_xmc.Retriever.build(encoder, WORDS)
    if votes:
        final.remember(development.train["text"], development.to_csr("train"), form)
    final.calibration = fitted
    report = final.reliability(development.test["text"], development.to_csr("test"))
    assert report.parts[1].error < 0.1 and report.parts[1].brier < report.parts[1].brier_base
    assert 0 < final.predict("war", 1)[0][0]["probability"] < 1


def test_predictions_that_tell_nothing_leave_a_note() -> None:
    record = RunRecord({})
    few = make_words_data(40).hold_out(0.025, by="row", answerable_only=True)
    assert len(few.test) == 1
    assert calibrate_held_out(make_static_encoder(), few, None, record) is None
    assert record.notes[0].startswith("calibration: none, ")
