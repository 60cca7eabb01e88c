import pytest

from herl import ConfigError, NoBonus
from herl.bonus.improvement import ImprovementBonus
from herl.testing import check_bonus_reward, make_judged

ATTEMPT = make_judged(0.5)


def revisions(*rewards):
    return [make_judged(r, id=f"group/0/{i}", parent_id="group/0") for i, r in enumerate(rewards)]


def test_pays_a_share_of_the_best_revisions_gain():
    assert ImprovementBonus(alpha=0.05).bonus(ATTEMPT, revisions(0.4, 0.9)) == pytest.approx(0.02)


def test_signed_lowers_the_reward_for_a_worse_revision_and_clipped_does_not():
    assert ImprovementBonus(0.1, "signed").bonus(ATTEMPT, revisions(0.3)) == pytest.approx(-0.02)
    assert ImprovementBonus(0.1, "clipped").bonus(ATTEMPT, revisions(0.3)) == 0.0


def test_a_negative_share_is_refused():
    with pytest.raises(ConfigError, match="bonus.alpha"):
        ImprovementBonus(alpha=-1.0)


@pytest.mark.parametrize("bonus", [NoBonus(), ImprovementBonus(), ImprovementBonus(0.2, "clipped")])
def test_bonuses_keep_the_contract(bonus):
    check_bonus_reward(bonus)
