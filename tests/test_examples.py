"""The examples run as shown, on a smaller part of their data."""

from statistics import fmean

import pytest
import torch

import fastrnn
from bench.timing import torch_threads
from examples import text_classifier


@pytest.fixture(autouse=True)
def one_thread():
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def corpus():
    return text_classifier.load(["de", "es", "fi"])


def test_the_corpus_is_real_and_split_by_message(corpus):
    train, test = corpus.train, corpus.test
    assert len(train) > 800 and len(test) > 150
    lengths = [len(text.characters) for text in train + test]
    assert min(lengths) >= text_classifier.SHORTEST and max(lengths) == text_classifier.LONGEST
    assert {text.label for text in test} == {0, 1, 2}
    assert all(0 < int(text.characters.max()) < corpus.characters for text in train + test)


def test_batches_are_padded_on_the_left_and_lose_no_text(corpus):
    seen = 0
    for characters, labels in text_classifier.batches(corpus.test, 32, seed=1):
        assert (characters[:, -1] > 0).all()
        assert (characters[:, 1:].bool() >= characters[:, :-1].bool()).all()
        seen += len(labels)
    assert seen == len(corpus.test)


def test_both_backends_learn_the_same_curve(capsys):
    results = text_classifier.main(["--smoke", "--dtype", "float64", "--seed", "3"])
    ours, torchs = results["fastrnn"], results["torch"]
    assert ours.losses == pytest.approx(torchs.losses, rel=1e-9)
    assert ours.losses[:20] == pytest.approx(torchs.losses[:20], rel=1e-12)
    assert fmean(ours.losses[-10:]) < 0.75 * fmean(ours.losses[:10])
    assert ours.accuracy == pytest.approx(torchs.accuracy, abs=0.005)
    assert ours.accuracy > 0.45  # one in five by always guessing the same
    text = capsys.readouterr().out
    assert "always guessing one language scores 2" in text
    assert text.count("samples/s") == 2 and "the loss curves are" in text


def test_both_backends_begin_the_same_curve_in_float32(corpus):
    ours, torchs = (
        text_classifier.fit(library, corpus, seed=0, epochs=1, dtype=torch.float32).losses
        for library in text_classifier.LIBRARIES.values()
    )
    assert ours[:20] == pytest.approx(torchs[:20], rel=1e-5)
    assert fmean(ours[-5:]) == pytest.approx(fmean(torchs[-5:]), rel=0.2)


def test_one_backend_alone(capsys):
    assert list(text_classifier.main(["--smoke", "--backend", "fastrnn"])) == ["fastrnn"]
    assert "loss curves" not in capsys.readouterr().out


def test_the_seed_decides(corpus):
    one, again, other = (
        text_classifier.fit(fastrnn, corpus, seed=seed, epochs=1, dtype=torch.float32).losses
        for seed in (0, 0, 1)
    )
    assert one == again != other
