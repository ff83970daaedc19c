"""Networks: shapes, mirror images, and whatever comes before the last dimension."""

import pytest
import torch
from torch import nn

from evidence.models import VAE, Autoencoder
from evidence.models.networks import decoder_network, encoder_network, mlp

SIZES = {
    "28": (784, (8, 4)),
    "8": (64, (8, 4)),
    "7": (49, (4, 3, 2)),
    "5": (25, (3,)),
    "1": (1, (2,)),
}


@pytest.mark.parametrize(("data_dim", "channels"), SIZES.values(), ids=SIZES)
def test_convolutions_take_and_give_images_of_any_size(data_dim, channels):
    encoder = encoder_network(data_dim, (6,), 4, channels=channels)
    decoder = decoder_network(4, (6,), data_dim, channels=channels[::-1], outputs_per_pixel=2)
    assert isinstance(encoder[-1], nn.Linear)
    for lead in ((), (3,), (0,), (5, 3), (5, 0)):
        assert encoder(torch.rand(*lead, data_dim)).shape == (*lead, 4)
        assert decoder(torch.rand(*lead, 4)).shape == (*lead, 2 * data_dim)
    z = torch.randn(5, 3, 4)
    assert torch.allclose(decoder(z)[2, 1], decoder(z[2, 1]), atol=1e-6)
    assert torch.allclose(encoder(decoder(z)[..., :data_dim])[2, 1],
                          encoder(decoder(z[2, 1])[:data_dim]), atol=1e-5)  # fmt: skip


def test_sides_are_halved_and_doubled_back():
    encoder = encoder_network(784, (), 4, channels=(8, 16))
    convolutions = encoder[0].layers
    assert [tuple(layer.weight.shape) for layer in convolutions[::2]] == [
        (8, 1, 3, 3),
        (16, 8, 3, 3),
    ]
    assert encoder[-1].in_features == 16 * 7 * 7
    decoder = decoder_network(4, (), 784, channels=(16, 8))
    assert decoder[0].out_features == 16 * 7 * 7
    shapes = [tuple(layer.weight.shape) for layer in decoder[-1].layers[::2]]
    assert shapes == [(16, 8, 3, 3), (8, 1, 3, 3)]


def test_a_decoder_ends_without_a_nonlinearity_and_an_encoder_has_one_before_its_layers():
    assert isinstance(
        decoder_network(4, (), 64, channels=(3, 2))[-1].layers[-1], nn.ConvTranspose2d
    )
    assert isinstance(encoder_network(64, (), 4, channels=(2, 3))[0].layers[-1], nn.ELU)


def test_without_channels_both_are_the_mlp():
    names = [list(net.state_dict()) for net in (
        mlp(9, (5,), 4), encoder_network(9, (5,), 4), decoder_network(9, (5,), 4)
    )]  # fmt: skip
    assert names[0] == names[1] == names[2]


def test_outputs_of_a_pixel_are_blocks():
    """The second half of a convolutional Gaussian decoder's outputs are the log-scales."""
    model = VAE(64, 3, hidden_dims=(), channels=(4,), likelihood="gaussian")
    with torch.no_grad():
        model.decoder[-1].layers[-1].bias.copy_(torch.tensor([5.0, -3.0]))
        model.decoder[-1].layers[-1].weight.zero_()
    pixels = model.likelihood(torch.zeros(2, 3)).base_dist
    assert torch.equal(pixels.loc, torch.full((2, 64), 5.0))
    assert pixels.log_scale.max() < -2.0


@pytest.mark.parametrize("kind", [VAE, Autoencoder])
def test_convolutional_decoders_learn_an_image(kind):
    torch.manual_seed(0)
    model = kind(64, 2, hidden_dims=(16,), channels=(8, 4))
    x, z = torch.rand(1, 64).round(), torch.zeros(1, 2)
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    first = model.likelihood(z).log_prob(x).item()
    for _ in range(60):
        adam.zero_grad()
        loss = -model.likelihood(z).log_prob(x).sum()
        loss.backward()
        adam.step()
    assert -loss.item() > first + 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VAE(12, channels=(4,)), r"square images with channels=\[4\], got data_dim=12"),
        (lambda: encoder_network(64, (), 4, channels=(0,)), r"channels of at least 1, got \[0\]"),
        (lambda: VAE(64, channels=(2,), activation="tahn"), "did you mean 'tanh'"),
        (lambda: decoder_network(4, (0,), 64, channels=(2,)), "layer sizes"),
    ],
)  # fmt: skip
def test_bad_sizes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
