"""Networks of others, in the sizes of their code, paper or benchmark."""

from functools import partial

from bench.cases import Case

lstm, gru = partial(Case, cells=("LSTM",)), partial(Case, cells=("GRU",))
# Sizes from the sources named; where a source gives no T or N, what its task implies.
GPU = (
    Case("fastrnns", 100, 64, 512, 512, 1, "fastrnns, PyTorch's own benchmark of LSTMs"),
    Case("fastrnns-packed", 100, 64, 512, 512, 1, "the same, sentences packed", job="packed"),
    Case("flashrnn", 1024, 16, 768, 768, 1, "FlashRNN's headline: an LSTM for long contexts"),
    Case("char-lm", 150, 64, 256, 256, 1, "DeepBench: a character language model"),
    Case("mt", 25, 64, 1024, 1024, 1, "DeepBench: machine translation"),
    Case("mt-wide", 25, 32, 2048, 2048, 1, "DeepBench: machine translation, large weights"),
    gru("speaker-id", 1500, 32, 1024, 1024, 1, "DeepBench: who speaks, from 15 s of audio"),
    gru("deepspeech", 375, 32, 1536, 1536, 1, "DeepBench: a layer of DeepSpeech 2"),
    lstm("rnnt-pre", 557, 32, 240, 1024, 2, "MLPerf RNN-T: encoder, before frames are stacked"),
    lstm("rnnt-post", 278, 32, 2048, 1024, 3, "MLPerf RNN-T: encoder, after it"),
    lstm("gnmt-bi", 50, 128, 1024, 1024, 1, "GNMT: first layer of the encoder", True, "packed"),
    lstm("gnmt", 50, 128, 1024, 1024, 3, "GNMT: the layers above it", job="packed"),
    lstm("dprnn", 100, 320, 128, 128, 1, "DPRNN-TasNet: speech separation, 4 s chunks", True),
    gru("wavernn", 1375, 32, 512, 512, 1, "WaveRNN: a vocoder in training"),
    gru("rnnoise-train", 2000, 128, 256, 256, 3, "RNNoise: noise suppression in training"),
    lstm("hydrology", 365, 256, 30, 128, 1, "rainfall to runoff: a year of days, 256 basins"),
    lstm("tts", 200, 1, 512, 256, 1, "Kokoro: speech synthesis of one sentence", True),
    Case("ppo", 32, 2048, 512, 512, 1, "PufferLib, sample-factory: PPO on 2048 environments"),
    lstm("silero", 500, 1, 128, 128, 1, "voice activity detection on a recording"),
    lstm("cliff", 2058, 62, 16, 168, 1, "nobody: probes where cuDNN changes its algorithm"),
    lstm("odd", 100, 64, 125, 320, 1, "sizes that are no multiple of anything"),
)

# Those that people know by name. T and N are what the code trains on or gets at once.
bi = partial(Case, bidirectional=True, cells=("LSTM",))
last = {"job": "last", "modes": ("training",)}
MODELS = (
    bi("pyannote", 589, 32, 60, 128, 4, "pyannote.audio: who speaks when, 10 s windows"),
    bi("open-unmix", 255, 16, 512, 256, 3, "Open-Unmix: instruments apart, 6 s of music"),
    bi("madmom", 3000, 1, 266, 25, 3, "madmom: beats of 30 s of music"),
    bi("onsets", 640, 8, 768, 384, 1, "Onsets and Frames: notes of 20 s of piano"),
    bi("tacotron", 150, 32, 512, 256, 1, "Tacotron 2: the letters of a sentence"),
    bi("crnn", 26, 64, 512, 256, 2, "CRNN: a word in an image"),
    bi("doctr", 32, 32, 512, 128, 2, "docTR: the same"),
    bi("lample", 25, 10, 150, 100, 1, "Lample et al. 2016: names in a sentence"),
    bi("sketch", 250, 100, 5, 256, 1, "Sketch-RNN: the strokes of a drawing"),
    gru("dcase", 156, 48, 128, 128, 2, "the DCASE baseline: sounds in 10 s", bidirectional=True),
    gru("translate", 10, 32, 128, 128, 1, "PyTorch's tutorial on translation"),
    lstm("denoiser", 625, 1, 768, 768, 2, "Denoiser: 10 s of a noisy speaker"),
    lstm("resemblyzer", 160, 1, 40, 256, 3, "Resemblyzer: whose voice, 1.6 s"),
    lstm("deepar", 192, 32, 25, 40, 2, "DeepAR of GluonTS: hours of a week, and the next day"),
    lstm("tft", 168, 64, 160, 160, 1, "Temporal Fusion Transformer: a week of hours"),
    lstm("sleep", 20, 15, 2048, 128, 1, "TinySleepNet: stages of sleep"),
    lstm("r2d2", 120, 64, 531, 512, 1, "R2D2: replayed sequences of an agent"),
    lstm("impala", 20, 32, 266, 256, 1, "IMPALA: a rollout of 32 actors"),
    lstm("rainfall", 365, 256, 32, 256, 1, "NeuralHydrology: today's runoff from a year", **last),
    Case("names", 7, 1, 58, 128, 1, "PyTorch's tutorial on names", cells=("RNN",), **last),
)
