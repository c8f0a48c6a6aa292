"""Every example runs as a user runs it, on a small part of its data, and what they are made of."""

import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cells
import chorales
import common
import dates
import fastrnn
import forecasting
import memory
import pretrained
import recurrent_policy
import scores
import speech
import text_classifier
import voices

EXAMPLES = Path(text_classifier.__file__).parent
PROGRAMS = sorted(
    path.stem for path in EXAMPLES.glob("*.py") if "--backend" in path.read_text().split('"""')[1]
)

pytestmark = pytest.mark.usefixtures("one_thread")


def run(name: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, EXAMPLES / f"{name}.py", "--smoke", "--out", folder, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_programs_are_those_of_the_readme():
    assert len(PROGRAMS) == 9
    readme = (EXAMPLES / "README.md").read_text()
    for name in PROGRAMS:
        assert f"({name}.py)" in readme and f"pictures/{name}.png" in readme
        assert (EXAMPLES / "pictures" / f"{name}.png").is_file()


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_learns_and_both_backends_agree(name, tmp_path):
    """`--smoke` exits with a message if the loss does not fall or the loss curves part."""
    done = run(name, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smoke: the loss falls" in done.stdout
    assert "fastrnn trains" in done.stdout and "samples/s" in done.stdout
    picture = (tmp_path / f"{name}.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 5000


def test_one_backend_alone(tmp_path):
    done = run("memory", tmp_path, "--backend", "fastrnn", "--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch.nn" not in done.stdout and "samples/s" in done.stdout


@pytest.mark.parametrize(
    "losses, message", [(([2, 1], [1, 1]), "did not fall"), (([2, 1.1], [2, 1]), "part")]
)
def test_the_check_of_smoke_fails_where_it_should(losses, message):
    runs = {name: common.Run(list(x)) for name, x in zip(("torch", "fastrnn"), losses, strict=True)}
    gap = max(abs(a - b) / b for a, b in zip(*losses, strict=True))
    with pytest.raises(SystemExit, match=message):
        common.check(runs, gap, tolerance=1e-6)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_lengths_and_single_steps_mean_the_same_in_both_libraries(cell):
    torch.manual_seed(0)
    lengths, x = torch.tensor([3, 7, 1, 5]), torch.randn(4, 7, 3, dtype=torch.float64)
    outputs, singles = [], []
    for library in common.LIBRARIES.values():
        torch.manual_seed(1)
        make = getattr(library, cell)
        rnn = make(3, 5, 2, batch_first=True, bidirectional=True, dtype=torch.float64)
        output, state = common.over_lengths(rnn, x, lengths)
        outputs.append([output, *(state if cell == "LSTM" else [state])])
        step = common.stepper(make(3, 5, 2, batch_first=True, dtype=torch.float64), 4)
        with torch.no_grad():
            singles.append([step(x[:, t]).clone() for t in range(7)])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*singles)
    assert (outputs[0][0][2, 1:] == 0).all()


def test_texts_are_real_and_split_by_message():
    corpus = text_classifier.load(["de", "es", "fi"])
    train, test = corpus.train, corpus.test
    assert len(train) > 2000 and len(test) > 500
    assert {text.label for text in test} == {0, 1, 2}
    longest, shortest = text_classifier.LONGEST, text_classifier.SHORTEST
    assert all(shortest <= len(text.text) <= longest for text in train + test)
    assert 0.6 < text_classifier.bag_of_words(corpus) < 0.98
    seen = [labels for _, _, labels in text_classifier.batches(test, 32, seed=1)]
    assert sum(len(labels) for labels in seen) == len(test)


def test_dates_are_written_in_many_ways_and_no_test_date_is_learned():
    train, test, index = dates.load(1500)
    assert not {iso for _, iso in train} & {iso for _, iso in test} and len(test) > 80
    day = dates.date(1984, 3, 7)
    assert dates.write(day, "full", "da") == "onsdag den 7. marts 1984"
    assert dates.write(day, "words", "de") == "sieben märz neunzehnhundertvierundachtzig"
    assert dates.write(day, "GyMMMd", "el") == "7 μαρ 1984 μ.χ."
    text, lengths, written = dates.tensors(test, index)
    assert (text != 0).sum(1).tolist() == lengths.tolist()
    assert "".join(dates.OUTPUT[k] for k in written[0]) == "^" + test[0][1]


def test_a_wider_beam_finds_no_less_likely_dates():
    train, _, index = dates.load(200)
    torch.manual_seed(0)
    model = dates.Translator(torch.nn, len(index) + 1)
    text, lengths, _ = dates.tensors(train[:20], index)
    begin = torch.full((20, 1), dates.OUTPUT.index("^"))

    def likelihood(width: int) -> torch.Tensor:
        found = model.translate(text, lengths, width)
        with torch.no_grad():
            scores = model(text, lengths, torch.cat([begin, found[:, :-1]], 1)).log_softmax(-1)
        return scores.gather(-1, found.unsqueeze(-1)).sum((1, 2))

    greedy, wide = likelihood(1), likelihood(24)
    assert (wide >= greedy - 1e-4).double().mean() > 0.9 and (wide > greedy + 1e-4).any()


def test_the_forecaster_is_not_told_the_demand_it_forecasts():
    demand, series, scale = forecasting.load()
    assert 0.5 < scale < 1.5 and series.shape == (len(demand), 9)
    x, y = forecasting.windows(demand, series, torch.tensor([1000]))
    future = x[0, forecasting.HISTORY :]
    assert (future[:, forecasting.DEMAND] == 0).all()
    week_before = future[:, forecasting.LAST_WEEK]
    assert torch.equal(week_before, demand[1000 - 336 : 1048 - 336])
    torch.testing.assert_close(y[0] + week_before, demand[1000:1048])


def test_observations_come_at_random_times_and_the_next_one_is_the_target():
    demand, features, scale = forecasting.load()
    x, times, y = cells.sequences((demand, features, scale), torch.tensor([100, 5000]))
    assert x.shape == (cells.SEEN, 2, 4) and y.shape == (cells.SEEN, 2)
    torch.testing.assert_close(x[1:, :, 0] - x[:-1, :, 0], y[:-1])
    gaps = (times[1:] - times[:-1]).squeeze(-1)
    torch.testing.assert_close(gaps, cells.GAP * x[1:, :, 2])
    torch.testing.assert_close(gaps, cells.GAP * x[:-1, :, 3])
    at = 5000 + times[:, 1, 0].long()
    assert torch.equal(x[:, 1, 0], demand[at]) and 1 <= gaps.min() < gaps.max() < 2 * cells.GAP


def test_the_loop_over_a_cell_is_a_layer_of_it():
    torch.manual_seed(0)
    loop = cells.Loop(cells.PHASED, 4, 7).double()
    layer = fastrnn.Recurrent(cells.PHASED, 4, 7).double()
    layer.load_state_dict(loop.state_dict())
    x, times = torch.randn(5, 3, 4).double(), 9 * torch.rand(5, 3, 1).double()
    (output, state), (expected, wanted) = (m(x, inputs={"time": times}) for m in (layer, loop))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(state, tuple(each.unsqueeze(0) for each in wanted))


def test_the_pinball_loss_is_least_at_the_quantile():
    y = torch.rand(10_001, dtype=torch.float64).sort().values
    losses = [
        forecasting.pinball(forecasting.LEVELS.double() + shift, y).item()
        for shift in (-0.05, 0, 0.05)
    ]
    assert losses[1] < losses[0] and losses[1] < losses[2]


def test_gradients_vanish_in_the_rnn_only():
    gradients = {}
    for cell in memory.CELLS:
        torch.manual_seed(0)
        gradients[cell] = memory.gradient(memory.Memory(torch.nn, cell, 60), 60)
    assert gradients["RNN"][0] < 1e-6
    assert gradients["LSTM"][0] > 1e-2 and gradients["GRU"][0] > 1e-2


def test_voices_speak_and_are_heard_by_their_filters():
    made = voices.utterances(4, True, 0)
    again = voices.utterances(4, True, 0)
    for one, other in zip(made, again, strict=True):
        assert one.digits == other.digits and 2 <= len(one.digits) <= 5
        assert 0.5 < len(one.audio) / voices.RATE < 8 and one.audio.abs().max() > 0.1
    learned = {u.voice for u in voices.utterances(40, False, 0)}
    assert not {voices.family(v) for v in learned} & {voices.family(u.voice) for u in made}
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(voices.RATE) / voices.RATE)
    loudest = speech.features(tone)[:, : speech.MELS].mean(0).argmax()
    centre = 700 * (10 ** ((loudest + 1) * math.log10(1 + voices.RATE / 1400) / 41) - 1)
    assert abs(centre - 1000) < 80


def test_words_are_counted_as_ctc_and_edit_distance_say():
    assert speech.collapse([10, 3, 3, 10, 3, 1, 10]) == [3, 3, 1]
    assert speech.errors([1, 2, 3], [1, 3]) == 1
    assert speech.errors([4, 2], [2, 2, 5]) == 2
    assert speech.errors([], [1, 2]) == 2


def test_chorales_are_read_and_written_as_midi(tmp_path):
    (piece, *_) = scores.load(8)
    sung = [scores.notes(piece, voice) for voice in range(4)]
    heights = [sum(number for _, _, number in notes) / len(notes) for notes in sung]
    assert heights == sorted(heights, reverse=True)  # soprano above alto above tenor above bass
    last = {number % 12 for _, end, number in (notes[-1] for notes in sung)}
    assert last <= {0, 4, 7, 9, 1}  # it ends on the tonic of C major or of A, minor or major
    path = tmp_path / "piece.mid"
    scores.write_midi(piece, path)
    data = path.read_bytes()
    assert data[:14] == struct.pack(">4sIHHH", b"MThd", 6, 0, 1, 24)
    assert struct.unpack(">I", data[18:22])[0] == len(data) - 22
    assert data[-4:] == b"\x00\xff\x2f\x00"


def test_n_grams_beat_guessing_on_their_own_pieces():
    pieces = scores.load(12)
    guessing = 4 * math.log2(scores.SYMBOLS)
    assert chorales.ngram_bits(pieces, pieces[:1]) < 0.2 * guessing
    assert chorales.ngram_bits(pieces[1:], pieces[:1]) < 0.8 * guessing


def test_resets_in_the_update_are_those_of_the_rollout():
    """The probabilities of the update at the weights of the rollout are those it played by."""
    with torch.no_grad():
        for library in common.LIBRARIES.values():
            torch.manual_seed(0)
            policy, corridors = recurrent_policy.Policy(library), recurrent_policy.Corridors(6)
            player, played = recurrent_policy.Player(policy), []
            player.begin()
            step = player.step
            player.step = lambda x, reset, step=step, played=played: (
                played.append(step(x, reset)) or played[-1]
            )
            recurrent_policy.play(player, corridors)
            played.clear()
            state = player.begin()
            x, reset, _, rewards = recurrent_policy.play(player, corridors)
            log_p, _ = policy(x, state, reset)
            torch.testing.assert_close(log_p.exp(), torch.stack(played))
            assert reset.any() and set(rewards.unique().tolist()) == {-1, 0, 1}


def test_pretrained_times_and_what_it_needs():
    """Its models come in packages that tests do without."""
    assert pretrained.folder("fastrnn") == Path(fastrnn.__file__).parent
    with pytest.raises(SystemExit, match="pip install --no-deps resemblyzer silero-vad g2p-en"):
        pretrained.folder("no_such_package")
    module = fastrnn.GRU(3, 5)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    streams = [fastrnn.Streamer(pretrained.loaded(fastrnn.GRU, weights)) for _ in range(2)]
    frames = torch.randn(30, 2, 3)
    took = pretrained.times(streams, frames, 0.01)
    assert len(took) == 2 and all(0 < each < 1e5 for each in took)
    assert torch.equal(streams[0].state, streams[1].state)
    spoken = pretrained.Phonemes.change(None, [(1, 2), (3,), (4,), (5,)], [(1, 2), (3,), (4,), ()])
    assert spoken == 25
