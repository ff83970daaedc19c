"""Data sets: fixed splits and digests, archives that are missing or corrupt, preprocessing."""

import gzip
import hashlib
import math
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torchvision

from evidence.experiments.setup import datasets
from evidence.experiments.setup.preprocessing import bits_per_dim, prepare, resolve_binarization
from tests.conftest import make_oracle


def test_digits_are_the_bundled_ones_in_fixed_splits():
    data = datasets.load("digits")
    assert (data.x_train.shape, data.x_test.shape) == ((1437, 64), (360, 64))
    assert (data.x_train.min(), data.x_train.max()) == (0.0, 1.0)
    assert data.sha256.startswith("34e17e7e394b")
    assert torch.equal(data.y_test[:4], torch.tensor([0, 5, 0, 5]))


def test_validation_data_are_training_data_held_out():
    test, validation = datasets.load("digits"), datasets.load("digits", split="validation")
    assert (validation.x_train.shape, validation.x_test.shape) == ((1077, 64), (360, 64))
    assert torch.equal(torch.cat([validation.x_train, validation.x_test]), test.x_train)
    rows = {tuple(row.tolist()) for row in test.x_test}
    assert not rows & {tuple(row.tolist()) for row in test.x_train}
    assert validation.sha256 == test.sha256


def test_toy_has_the_moments_it_was_simulated_with():
    data = datasets.load("toy")
    x = torch.cat([data.x_train, data.x_test]).double()
    weight = np.random.Generator(np.random.PCG64(0)).normal(size=(3, 10))
    covariance = torch.from_numpy(weight.T @ weight) + 0.25 * torch.eye(10)
    se = covariance.diagonal().sqrt() / math.sqrt(len(x))
    assert ((x.mean(0) - 1).abs() < 5 * se).all()
    assert (torch.cov(x.T) - covariance).abs().max() < 0.5
    assert data.image_shape is None


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """Four archives in MNIST's format with 12,000 and 20 images, known to torchvision by MD5."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    resources = []
    for name, shape in (
        ("train-images-idx3-ubyte.gz", (12_000, 28, 28)),
        ("train-labels-idx1-ubyte.gz", (12_000,)),
        ("t10k-images-idx3-ubyte.gz", (20, 28, 28)),
        ("t10k-labels-idx1-ubyte.gz", (20,)),
    ):
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        values = generator.integers(0, 10, shape, dtype=np.uint8)
        payload = gzip.compress(header + values.tobytes(), mtime=0)
        (raw / name).write_bytes(payload)
        resources.append((name, hashlib.md5(payload).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    return tmp_path


def test_mnist_is_read_from_its_archives(small_mnist):
    data = datasets.load("mnist", data_root=small_mnist)
    assert (data.x_train.shape, data.x_test.shape) == ((12_000, 784), (20, 784))
    assert data.x_train.max().item() == pytest.approx(9 / 255)
    validation = datasets.load("mnist", data_root=small_mnist, split="validation")
    assert (len(validation.x_train), len(validation.x_test)) == (2_000, 10_000)


def test_the_environment_names_the_data_root(small_mnist, monkeypatch):
    monkeypatch.setenv("EVIDENCE_DATA", str(small_mnist))
    assert len(datasets.load("mnist").x_test) == 20


def test_a_read_only_copy_is_read_and_left_alone(small_mnist):
    raw = small_mnist / "MNIST" / "raw"
    raw.chmod(0o555)
    before = sorted(raw.iterdir())
    assert len(datasets.load("mnist", data_root=small_mnist).x_test) == 20
    assert sorted(raw.iterdir()) == before
    raw.chmod(0o755)


def test_a_corrupt_archive_is_named(small_mnist):
    archive = small_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"corrupt archive .*t10k-images.*expected MD5"):
        datasets.load("mnist", data_root=small_mnist)


@pytest.mark.parametrize("content", [b"", b"half", None])
def test_unpacked_files_are_neither_trusted_nor_in_the_way(small_mnist, content):
    """Beside good archives: truncated, or whole but of other images."""
    expected = datasets.load("mnist", data_root=small_mnist)
    for archive in (small_mnist / "MNIST" / "raw").glob("*.gz"):
        payload = gzip.decompress(archive.read_bytes())
        other = payload[:16] + bytes(len(payload) - 16)
        archive.with_suffix("").write_bytes(other if content is None else content)
    data = datasets.load("mnist", data_root=small_mnist)
    assert data.sha256 == expected.sha256
    assert data.sha256 == datasets.digest(
        *(torch.from_numpy(x) for x in torchvision_reads(small_mnist))
    )


def torchvision_reads(root):
    """Train and test images and labels, as torchvision unpacks them by itself."""
    raw = root / "MNIST" / "raw"
    for path in raw.glob("*ubyte"):
        path.unlink()
    parts = [torchvision.datasets.MNIST(root, train=t, download=True) for t in (True, False)]
    return [x for part in parts for x in (part.data.numpy(), part.targets.numpy().astype(np.uint8))]


@pytest.fixture
def server(tmp_path):
    """A folder, and the address at which its files can be fetched."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


def test_only_what_is_missing_is_fetched_and_in_full(small_mnist, monkeypatch, server):
    raw, (folder, address) = small_mnist / "MNIST" / "raw", server
    expected, missing = datasets.load("mnist", data_root=small_mnist), "t10k-images-idx3-ubyte.gz"
    (raw / missing).rename(folder / missing)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/", address])
    assert datasets.load("mnist", data_root=small_mnist).sha256 == expected.sha256
    (folder / missing).write_bytes((raw / missing).read_bytes()[:-9])
    (raw / missing).unlink()
    with pytest.raises(ValueError, match="no usable copy of MNIST"):
        datasets.load("mnist", data_root=small_mnist)
    assert missing not in {path.name for path in raw.iterdir()}
    assert not [path for path in raw.iterdir() if path.name.startswith(".")]


def test_neither_network_nor_copy_says_how_to_get_the_files(small_mnist, tmp_path):
    with pytest.raises(ValueError, match=r"no usable copy.*train-images.*--data_root") as error:
        datasets.load("mnist", data_root=tmp_path / "elsewhere")
    assert "\n" not in str(error.value)


def test_unknown_names_are_suggested():
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        datasets.load("digit")
    with pytest.raises(ValueError, match="expected one of all, test, validation"):
        datasets.load("digits", split="training")


def test_digests_tell_values_shapes_and_types_apart():
    x = torch.arange(6.0)
    digests = [datasets.digest(y) for y in (x, x + 1, x.reshape(2, 3), x.double())]
    assert len(set(digests)) == 4
    assert datasets.digest(x.clone()) == digests[0]


GREY = torch.rand(500, 40, generator=torch.Generator().manual_seed(0))


def prepared(binarize, seed=0, num_levels=17, dequantized=True):
    levels = (GREY * 16).round() / 16
    options = {"num_levels": num_levels, "seed": seed, "dequantized": dequantized}
    return levels, *prepare(levels, levels, binarize=binarize, **options)


def is_binary(x):
    return ((x == 0) | (x == 1)).all()


def test_dynamic_binarization_draws_anew_and_fixes_the_evaluation_data():
    levels, x_train, x_test, transform = prepared("dynamic")
    assert torch.equal(x_train, levels)
    assert is_binary(x_test)
    draws = torch.stack([transform(x_train) for _ in range(400)])
    assert is_binary(draws)
    assert not torch.equal(draws[0], draws[1])
    se = (levels * (1 - levels) / 400).sqrt()
    assert ((draws.mean(0) - levels).abs() <= 5 * se).all()
    assert torch.equal(x_test, prepared("dynamic")[2])
    assert not torch.equal(x_test, prepared("dynamic", seed=1)[2])


def test_static_binarization_and_threshold_fix_both():
    levels, x_train, x_test, transform = prepared("static")
    assert transform is None
    assert is_binary(x_train)
    assert not torch.equal(x_train, x_test)
    levels, x_train, x_test, transform = prepared("threshold")
    assert transform is None
    assert torch.equal(x_train, (levels > 0.5).float())


def test_dequantized_pixels_keep_their_level():
    levels, x_train, x_test, transform = prepared("none")
    assert torch.equal(x_train, levels)
    for x in (x_test, transform(x_train)):
        assert torch.equal((x * 17).floor(), (levels * 16).round())
        assert ((x >= 0) & (x < 1)).all()
    assert torch.equal(prepared("none", num_levels=None)[2], levels)


def test_preparation_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    prepared("static")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("binarize", "pixels", "levels", "expected"),
    [
        ("auto", "binary", 256, "dynamic"),
        ("auto", "real", 256, "none"),
        ("auto", "unit", 256, "none"),
        ("auto", "levels", 256, "none"),
        ("auto", "real", None, "none"),
        ("static", "real", 256, "static"),
    ],
)
def test_what_auto_means(binarize, pixels, levels, expected):
    assert resolve_binarization(binarize, pixels=pixels, num_levels=levels) == expected


def test_levels_stay_where_they_are():
    levels, x_train, x_test, transform = prepared("none", dequantized=False)
    assert transform is None
    assert torch.equal(x_train, levels)
    assert torch.equal(x_test, levels)
    assert not torch.equal(prepared("none")[2], levels)


def test_bits_per_dim_of_levels_need_no_volume():
    nats = -5 * math.log(256)
    assert bits_per_dim(nats, data_dim=5, num_levels=256, dequantized=False) == pytest.approx(8.0)


def test_simulated_data_are_the_models():
    model = make_oracle(10, 3).float()
    data = datasets.simulated(model)
    assert data.x_train.shape == (4000, 10)
    assert data.x_test.shape == (1000, 10)
    z_scores = (data.x_train.mean(0) - model.loc) / (data.x_train.std(0) / 4000**0.5)
    assert z_scores.abs().max() < 5


def test_labels_stand_beside_the_data():
    plain = datasets.load("digits")
    both = datasets.with_labels(plain)
    assert torch.equal(both.x_train[:, :64], plain.x_train)
    assert torch.equal(both.x_test[:, 64:].argmax(1), plain.y_test)
    assert both.x_test[:, 64:].sum(1).eq(1).all()


def test_reals_are_not_binarized():
    with pytest.raises(ValueError, match="expected pixels to binarize"):
        resolve_binarization("static", pixels="real", num_levels=None)


def test_bits_per_dim_of_uniform_noise_are_the_bits_of_its_levels():
    assert bits_per_dim(0.0, data_dim=5, num_levels=256) == pytest.approx(8.0)
    assert bits_per_dim(5 * math.log(2), data_dim=5, num_levels=256) == pytest.approx(7.0)
