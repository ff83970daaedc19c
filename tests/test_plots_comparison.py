"""What a comparison's picture and table say: judged by the best log p(x), and marked where not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from evidence.experiments.reports import plots, plots_comparison
from evidence.experiments.reports.report import table
from evidence.experiments.reports.shortfall import shortfalls
from evidence.experiments.reports.verdicts import verdict_table
from evidence.experiments.storage.records import Estimate
from evidence.inference import Evidence, compare_elbos
from tests.rows import a_row

DRAWN = True

WHY = "k̂ is too large for half of the data: more particles"


def estimate(name, nats, reason=None):
    return Estimate(
        estimator=name, nats=nats, mc_se=None if reason else 0.01, data_se=0.2, num_particles=100,
        num_data=50, reliable=reason is None, reason=reason,
    )  # fmt: skip


def row(label, elbo, iw=None, exact=None, reason=None, decoder="frozen"):
    estimates = [estimate("elbo", elbo)]
    estimates += [estimate("iw", iw, reason)] if iw is not None else []
    estimates += [estimate("exact", exact)] if exact is not None else []
    return a_row(label=label, estimates=estimates, decoder=decoder)


# One model: the failing guide's IW is 0.75 nats low, and its own IW − ELBO would look best.
FAILING = [
    row("good", -92.0, -91.0, exact=-91.0, decoder="joint"),
    row("failing", -92.0, -91.75, exact=-91.0, reason=WHY, decoder="joint"),
]


@pytest.mark.parametrize("decoder", ["joint", "frozen"])
def test_a_failing_guide_is_not_rewarded_where_the_exact_value_is_known(decoder):
    good, failing = shortfalls([replace(one, decoder=decoder) for one in FAILING])
    assert good.nats == failing.nats == pytest.approx(1.0)
    assert {good.judge, failing.judge} == {"exact"}
    assert failing.reason is None
    by_its_own_weights = -91.75 + 92.0
    assert by_its_own_weights < failing.nats / 2


def test_rows_of_one_model_are_judged_by_the_best_reliable_bound_of_all():
    rows = [row("A", -92.0, -91.75, reason=WHY), row("B", -92.5, -91.0), row("C", -92.1, -91.1)]
    assert [one.nats for one in shortfalls(rows)] == pytest.approx([1.0, 1.5, 1.1])
    high = [row("A", -92.0, -80.0, reason=WHY), *rows[1:]]  # nor by an outlier
    assert shortfalls(high)[0].nats == pytest.approx(1.0)
    joint = [replace(one, decoder="joint") for one in rows]
    own, *_ = shortfalls(joint)
    assert (own.nats, own.reason) == (pytest.approx(0.25), WHY)
    assert shortfalls([row("A", -92.0)]) is None


def difference_of(spread, shift=0.5):
    base = torch.linspace(-3, 3, 40, dtype=torch.float64) - 90
    nothing = torch.full_like(base, math.nan)
    records = {
        label: Evidence("elbo", 100, base + by, 0 * base, nothing, nothing)
        for label, by in (("good", 0 * base), ("failing", shift + spread * torch.sin(9 * base)))
    }
    return compare_elbos(records)


def test_the_picture_shows_estimates_shortfalls_and_paired_differences():
    (found,) = difference_of(0.3)
    figure = plots_comparison.evidence_bars(FAILING, [found])
    values, lacking, paired = figure.axes
    assert [bar.get_width() for bar in lacking.patches] == pytest.approx([1.0, 1.0])
    assert "exact" in lacking.get_title()
    spans = [c.lines[2][0].get_segments()[0][:, 0] for c in values.containers]
    assert np.allclose([high - low for low, high in spans], 0.8)  # ± 2 SE of 0.2
    assert len(spans) == 5  # six estimates, and one that is not reliable has no bar
    (hollow,) = [line for line in values.lines if line.get_markerfacecolor() == "none"
                 and len(line.get_xdata())]  # fmt: skip
    assert hollow.get_xdata() == [-91.75]
    assert "NOT RELIABLE" in [text.get_text() for text in values.get_legend().get_texts()]
    low, high = found.difference.interval()
    (interval,) = [line.get_xdata() for line in paired.lines if line.get_linewidth() == 2.2
                   and len(line.get_xdata()) == 2]  # fmt: skip
    assert sorted(interval) == pytest.approx([-high, -low])  # failing − good
    assert "good" in paired.get_title()
    labels = [label.get_text() for label in values.get_yticklabels()]
    assert labels == ["good", "failing"]


def test_a_bar_that_hangs_on_failing_weights_says_so():
    figure = plots_comparison.evidence_bars([row("A", -92.0, -91.75, reason=WHY)])
    _, lacking = figure.axes
    assert "NOT RELIABLE" in lacking.texts[0].get_text()
    figure = plots_comparison.evidence_bars([row("A", -92.0, -91.0)])
    assert figure.axes[1].texts[0].get_text().strip() == "≥ 1.000"
    assert len(plots_comparison.evidence_bars([row("A", -92.0)]).axes) == 1


def test_the_table_puts_what_is_nearest_to_the_evidence_first_and_marks_what_is_not_reliable():
    text = table(FAILING)
    header, _, good, failing = (line for line in text.splitlines() if line.startswith("|"))
    names = [name.strip() for name in header.strip("|").split("|")][:4]
    assert names == ["guide", "exact", "IW-100", "ELBO"]
    assert "-91.000 ± 0.010 ± 0.200" in good
    cells = [cell.strip() for cell in failing.strip("|").split("|")]
    assert cells[2] == "NOT RELIABLE -91.750"
    assert f"NOT RELIABLE, IW-100 of failing: {WHY}" in text
    many = [row(f"guide {k}", -92.0, -91.0, reason=WHY) for k in range(9)]
    assert table(many).count(WHY) == 3
    assert "6 more reasons are in results.json" in table(many)


def test_a_verdict_of_single_fits_says_how_to_learn_more():
    text = verdict_table(difference_of(0.3))
    assert "failing beats good, for these fits" in text
    assert "`--seeds 3`" in text
    assert "2 SE" not in text


@pytest.mark.parametrize("count", [1, 2, 14])
@pytest.mark.parametrize("label", ["A", "Refined(guide=Planar(num_flows=16, hidden_dims=[100, 2"])
def test_nothing_is_cut_off(count, label, tmp_path):
    rows = [
        row(f"{label}{k}", -93.0 - k, -91.5, reason=WHY if k % 2 else None) for k in range(count)
    ]
    plots.save(plots_comparison.evidence_bars(rows), tmp_path / "figure.png")
    pixels = np.asarray(Image.open(tmp_path / "figure.png").convert("L"))
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()
