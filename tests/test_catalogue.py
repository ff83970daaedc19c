"""Finding and building by name: guides around guides, and the lists of what there is."""

import pytest
import torch

from evidence.experiments.cli import main
from evidence.experiments.setup import catalogue
from evidence.experiments.setup.catalogue import Spec
from evidence.guides import Planar, Refined, Unamortized
from evidence.models import VAE

MODEL = VAE(8, 3, hidden_dims=(16, 4))
X = torch.rand(5, 8).bernoulli()


def test_a_guide_around_a_guide_is_built_inside_out():
    text = "Refined(guide=Planar(num_flows=4), num_steps=5)"
    guide, spec = catalogue.build_guide(Spec.parse(text), MODEL, X)
    assert isinstance(guide, Refined)
    assert isinstance(guide.guide, Planar)
    assert (guide.num_steps, guide.guide.num_flows) == (5, 4)
    assert guide.guide.encoder[0].out_features == 4  # mirrors the decoder, as without a wrapper
    again, _ = catalogue.build_guide(Spec.parse(str(spec)), MODEL, X)
    assert str(spec).startswith("Refined(guide=Planar(num_flows=4, hidden_dims=[4, 16]")
    assert again.guide.num_flows == 4


def test_a_bare_name_inside_will_do():
    guide, _ = catalogue.build_guide(Spec.parse("Refined(guide=MeanField)"), MODEL, X)
    assert type(guide.guide).__name__ == "MeanField"


def test_a_guide_without_an_encoder_is_given_the_data():
    guide, _ = catalogue.build_guide(Spec.parse("Unamortized(guide=MeanField)"), MODEL, X)
    assert isinstance(guide, Unamortized)
    assert guide.table.shape == (5, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Refined", r"write Refined\(guide=MeanField\)"),
        ("Refined(guide=Planr)", "did you mean 'Planar'"),
        ("Refined(guide=MeanField, num_step=3)", "did you mean 'num_steps'"),
        ("Refined(guide=MeanField(hidden=3))", "unknown option of MeanField"),
        ("ModelGuide(guide=MeanField)", "unknown guide 'ModelGuide'"),
        ("Hierarchical", "two or more latent layers"),
        ("MeanField(latent_dim=3)", "unknown option of MeanField 'latent_dim'"),
    ],
)
def test_mistakes_inside_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        catalogue.build_guide(Spec.parse(text), MODEL, X)


def test_parts_of_a_model_are_written_out_in_full():
    """With what was left out, and the same again when read anew, quoted or not."""
    texts = (
        "VAE(likelihood=gaussian, prior=mixture)",
        "VAE(prior='mixture(num_components=10)', likelihood=gaussian(scale_floor=0.01))",
    )
    full = [catalogue.build_model(Spec.parse(text), data_dim=8)[1] for text in texts]
    assert str(full[0]) == str(full[1])
    assert str(full[0]).endswith(
        "likelihood=gaussian(scale_floor=0.01), prior=mixture(num_components=10))"
    )
    assert catalogue.build_model(Spec.parse(str(full[0])), data_dim=8)[1] == full[0]
    other = Spec.parse("VAE(likelihood=gaussian, prior=mixture(num_components=9))")
    assert catalogue.build_model(other, data_dim=8)[1] != full[0]


def test_options_in_results_are_plain():
    _, spec = catalogue.build_guide(Spec.parse("Refined(guide=MeanField)"), MODEL, X)
    assert spec.plain_options()["guide"].startswith("MeanField(hidden_dims=[4, 16]")


@pytest.mark.parametrize("what", ["guides", "models"])
def test_the_lists_hold_every_class_with_its_options_and_source(what, capsys):
    assert main([what]) == 0
    text = capsys.readouterr().out
    kinds = getattr(catalogue, f"all_{what}")()
    assert len(kinds) >= 4
    for name, kind in kinds.items():
        entry = next(e for e in text.split("\n\n") if e.splitlines()[0] == name)
        assert " ".join(entry.split()).count(f" {name}") >= 1
        reference = "Reference:" in (kind.__doc__ or "")
        assert ("Reference: " in entry) == reference, name
    assert max(len(line) for line in text.splitlines()) <= 100
    parts = "prior: one of standard-normal, mixture(num_components=10), "
    assert (parts in text) == (what == "models")


def test_the_list_shows_what_a_guide_can_be_told(capsys):
    main(["guides"])
    text = capsys.readouterr().out
    assert "Planar(num_flows=8)" in text
    assert "Refined(guide=MeanField, num_steps=10, lr=0.05, num_particles=8)" in text
    assert "https://arxiv.org/abs/1505.05770, eqs. 10-15." in text
    assert "ModelGuide" not in text
