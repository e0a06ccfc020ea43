"""A small crowd: nobody's answer is lost or another's, the broken files hurt only their owners, and places are told.

The full study is `python -m modeling_gaze2report.hub_space.load_study URL`.
"""

import pytest

from .running_space import PHANTOM

pytest.importorskip("gradio")
VISITORS, REQUESTS = 8, 24


@pytest.fixture(scope="module")
def outcomes(space):
    from modeling_gaze2report.hub_space.load_study import crowd

    return crowd(space.url, VISITORS, REQUESTS, 0, PHANTOM)


def test_everybody_gets_an_answer_about_the_own_film(outcomes):
    assert len(outcomes) == REQUESTS
    assert not [outcome for outcome in outcomes if outcome.fault]
    assert {outcome.kind for outcome in outcomes} == {"report", "ask", "scanpaths", "broken", "ground"}


def test_those_who_wait_are_told_their_place(outcomes):
    assert max(place for outcome in outcomes for place in outcome.places) >= 2


def test_reports_begin_before_they_are_finished(outcomes):
    reports = [outcome for outcome in outcomes if outcome.kind == "report"]

    assert reports and all(outcome.first_s < outcome.whole_s for outcome in reports)


def test_memory_stays_flat(space, outcomes):
    from modeling_gaze2report.hub_space.load_study import crowd

    before = space.memory()
    crowd(space.url, VISITORS, REQUESTS, 0, PHANTOM)

    assert space.memory() - before < 60
