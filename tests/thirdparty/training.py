"""Libraries that train or explain a model that somebody gives them, or one of their own."""

from __future__ import annotations

import random
import tempfile

import numpy
import torch
from comparison import compare
from torch import nn

import fastrnn


class Net(nn.Module):
    """Linear, recurrent, linear; the last output alone."""

    def __init__(self, kind: str = "LSTM", **options) -> None:
        super().__init__()
        self.into = nn.Linear(4, 6)
        self.rnn = getattr(nn, kind)(6, 8, 2, batch_first=True, **options)
        self.out = nn.Linear(8 * (1 + self.rnn.bidirectional), 3)

    def forward(self, x):
        return self.out(self.rnn(self.into(x))[0][:, -1])


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def apart(ours, theirs) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max(float((torch.as_tensor(a) - torch.as_tensor(e)).abs().max()) for a, e in pairs)


def seeded(function):
    """Its result with `torch.nn` and under `patch()`, from the same seeds."""
    results = []
    for patched in (False, True):
        torch.manual_seed(0)
        numpy.random.seed(0)
        random.seed(0)
        if patched:
            with fastrnn.patch():
                results.append(function())
        else:
            results.append(function())
    return results


def has_ours(model: nn.Module) -> bool:
    return any(isinstance(each, fastrnn.RNNBase) for each in model.modules())


def accelerate():
    """Accumulation, clipping and mixed precision in bfloat16; `init_empty_weights`."""
    from accelerate import Accelerator, init_empty_weights
    from accelerate.state import AcceleratorState

    def train(kind, precision):
        model, losses = Net(kind), []
        helper = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
        data = torch.utils.data.DataLoader([*numbers(16, 5, 4)], batch_size=4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        wrapped, optimizer, data = helper.prepare(model, optimizer, data)
        for x in data:
            with helper.accumulate(wrapped):
                loss = wrapped(x).square().mean()
                helper.backward(loss)
                helper.clip_grad_norm_(wrapped.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        AcceleratorState._reset_state(True)
        return model, losses

    found = {}
    for kind in ("LSTM", "GRU", "RNN"):
        for precision, most in (("no", 1e-5), ("bf16", 1e-2)):
            (_, wanted), (model, losses) = seeded(lambda k=kind, p=precision: train(k, p))
            found[precision] = max(apart(losses, wanted), found.get(precision, 0.0))
            assert has_ours(model) and found[precision] < most, found
        with init_empty_weights():
            empty = getattr(fastrnn, kind)(6, 8, 2, batch_first=True)
        assert all(p.is_meta for p in empty.parameters())
        empty.load_state_dict(model.rnn.state_dict(), assign=True)
        assert torch.equal(empty(numbers(2, 5, 6))[0], model.rnn(numbers(2, 5, 6))[0])
    return f"losses within {found['no']:.0e}, in bfloat16 within {found['bf16']:.0e}"


def captum():
    """Nine kinds of attributions, of LSTM, GRU and RNN."""
    import captum.attr as attr

    x = numbers(3, 7, 4)
    ways = {
        "IntegratedGradients": {"n_steps": 8},
        "Saliency": {},
        "DeepLift": {},
        "InputXGradient": {},
        "GuidedBackprop": {},
        "FeatureAblation": {},
        "Occlusion": {"sliding_window_shapes": (2, 4)},
        "GradientShap": {"baselines": x * 0, "n_samples": 3},
    }

    def explain(kind):
        model, found = Net(kind, bidirectional=True).eval(), []
        for name, options in ways.items():
            given = x.clone().requires_grad_()
            torch.manual_seed(2)
            numpy.random.seed(2)
            found.append(getattr(attr, name)(model).attribute(given, target=1, **options))
        layer = attr.LayerConductance(model, model.into)
        return model, [*found, layer.attribute(x, target=1, n_steps=5)]

    most = 0.0
    for kind in ("LSTM", "GRU", "RNN"):
        (_, wanted), (model, found) = seeded(lambda kind=kind: explain(kind))
        assert has_ours(model)
        most = max(most, apart(found, wanted))
    assert most < 1e-5, most
    return f"attributions within {most:.0e}"


def peft():
    """LoRA beside an LSTM, and over weights of it by `target_parameters`; p-tuning with an LSTM."""
    from peft import LoraConfig, PromptEncoder, PromptEncoderConfig, get_peft_model

    def adapted(**options):
        config = LoraConfig(r=2, init_lora_weights=False, **options)
        return lambda: get_peft_model(Net(), config)

    x, told = numbers(3, 7, 4), []
    for make in (
        adapted(target_modules=["into", "out"]),
        adapted(target_modules=["into"], modules_to_save=["rnn"]),
        adapted(target_modules=["out"], target_parameters=["rnn.weight_hh_l0"]),
    ):
        told.append(compare(make, lambda model: model(x).square().mean()))
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, token_dim=16, num_transformer_submodules=1,
        encoder_reparameterization_type="LSTM", encoder_num_layers=2, encoder_dropout=0.1,
        encoder_hidden_size=16,
    )  # fmt: skip
    prompt = torch.arange(5)[None]
    told.append(compare(lambda: PromptEncoder(config), lambda m: m(prompt).square().mean()))
    return max(told, key=lambda text: float(text.split()[-1]))


def darts():
    """BlockRNNModel, RNNModel and TFTModel, which build their layers in `fit`."""
    from darts import TimeSeries
    from darts.models import BlockRNNModel, RNNModel, TFTModel

    wave = numpy.sin(numpy.arange(120) / 5) + numpy.arange(120) % 7 / 7
    series, most = TimeSeries.from_values(wave.astype(numpy.float32)), 0.0
    quiet = dict.fromkeys(
        ("enable_progress_bar", "logger", "enable_checkpointing", "enable_model_summary"), False
    )
    options = {
        "n_epochs": 2,
        "random_state": 1,
        "input_chunk_length": 24,
        "pl_trainer_kwargs": {"accelerator": "cpu", **quiet},
    }

    def forecast(kind, **sizes):
        model = kind(**sizes, **options)
        model.fit(series)
        return model.model, model.predict(6).values()

    for kind, sizes in (
        (BlockRNNModel, {"model": "LSTM", "output_chunk_length": 6, "n_rnn_layers": 2}),
        (BlockRNNModel, {"model": "GRU", "output_chunk_length": 6}),
        (RNNModel, {"model": "LSTM", "training_length": 30}),
        (TFTModel, {"output_chunk_length": 6, "hidden_size": 16, "add_relative_index": True}),
    ):
        (_, wanted), (model, found) = seeded(lambda k=kind, s=sizes: forecast(k, **s))
        assert has_ours(model)
        most = max(most, apart(found, wanted))
    assert most < 1e-3, most
    return f"forecasts within {most:.0e}"


def gluonts():
    """DeepAR and TemporalFusionTransformer, which build their layers in `train`."""
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator, TemporalFusionTransformerEstimator

    waves = [numpy.sin(numpy.arange(100) / 4) + k for k in range(3)]
    data = ListDataset([{"start": "2020-01-01", "target": wave} for wave in waves], freq="D")

    def forecast(kind, folder, **sizes):
        quiet = {"enable_progress_bar": False, "logger": False, "enable_model_summary": False}
        trainer = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": folder, **quiet}
        estimator = kind(
            freq="D", prediction_length=5, context_length=20, num_batches_per_epoch=6,
            batch_size=8, trainer_kwargs=trainer, **sizes,
        )  # fmt: skip
        predictor = estimator.train(data)
        torch.manual_seed(3)
        return predictor.prediction_net, [each.quantile(0.5) for each in predictor.predict(data)]

    most = 0.0
    for kind, size in (
        (DeepAREstimator, "hidden_size"),
        (TemporalFusionTransformerEstimator, "hidden_dim"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            (_, wanted), (model, found) = seeded(
                lambda k=kind, f=folder, s=size: forecast(k, f, **{s: 16})
            )
        assert has_ours(model)
        most = max(most, apart(found, wanted))
    assert most < 1e-3, most
    return f"forecasts within {most:.0e}"
