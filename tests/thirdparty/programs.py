"""A short training in each library, with `torch.nn` and with ours, and how far they are apart."""

from __future__ import annotations

import sys
import tempfile

import torch
from comparison import compare
from reinforcement import sb3_contrib, torchrl
from torch import nn
from training import accelerate, captum, darts, gluonts, peft
from zoo import ncps, torchrecurrent

import fastrnn


def transformers():
    """EncodecModel, whose coder holds LSTMs; `from_pretrained` of a model with a new LSTM head."""
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=16)
    audio = torch.randn(1, 1, 640, generator=torch.Generator().manual_seed(1))
    told = compare(
        lambda: EncodecModel(config),
        lambda m: (m.decoder(m.encoder(audio)) - audio).square().mean(),
    )
    heads = [_with_a_new_head(library).state_dict() for library in (nn, fastrnn)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert not any(value.any() for name, value in heads[1].items() if "bias" in name)
    return f"{told}; the same missing weights"


def _with_a_new_head(library) -> nn.Module:
    """The LSTM of a model whose checkpoint lacks it, read where memory holds other numbers."""
    from transformers import BertConfig, BertModel, BertPreTrainedModel

    class Tagger(BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bert = BertModel(config)
            self.lstm = library.LSTM(16, 8, bidirectional=True)
            self.post_init()

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        del [torch.full((32, 16), 1e30) for _ in range(300)][:]
        torch.manual_seed(0)
        return Tagger.from_pretrained(folder).lstm


def pytorch_forecasting():
    """Its subclasses of nn.LSTM and nn.GRU, with lengths."""
    from pytorch_forecasting.models.nn.rnn import GRU, LSTM

    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([6, 2, 3, 1])
    for cls in (LSTM, GRU):
        told = compare(
            lambda cls=cls: cls(3, 4, 2, batch_first=True),
            lambda m: m(x, lengths=lengths, enforce_sorted=False)[0].square().mean(),
            lambda cls=cls: fastrnn.convert(cls(3, 4, 2, batch_first=True)),
        )
    return told


def opacus():
    """GradSampleModule, with no DPLSTM."""
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    class Net(nn.Module):
        def __init__(self, library, name):
            super().__init__()
            self.rnn = getattr(library, name)(3, 4, 2, batch_first=True, bidirectional=True)
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    x, apart = torch.randn(6, 5, 3), 0.0
    for name in ("LSTM", "GRU", "RNN"):
        ours, theirs = Net(fastrnn, name), Net(nn, name)
        theirs.load_state_dict(ours.state_dict())
        assert not ModuleValidator.validate(ours)
        wrapped = GradSampleModule(ours, loss_reduction="sum")
        wrapped(x).square().sum().backward()
        for row in range(len(x)):
            theirs.zero_grad()
            theirs(x[row : row + 1]).square().sum().backward()
            for a, e in zip(ours.parameters(), theirs.parameters(), strict=True):
                apart = max(apart, (a.grad_sample[row] - e.grad).abs().max().item())
        _refused("an initial state", ours.rnn, x, state(ours.rnn, x))
        _refused("h_n", lambda rnn=ours.rnn: total(rnn(x)).backward())
    assert apart < 1e-5, apart
    return f"per-sample gradients within {apart:.0e} of one at a time"


def state(rnn, x):
    with torch.enable_grad():
        return rnn(x)[1]


def total(results) -> torch.Tensor:
    return sum(each.sum() for each in torch.utils._pytree.tree_leaves(results))


def _refused(text: str, call, *args) -> None:
    try:
        call(*args)
    except RuntimeError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"{text} is not refused")


def lightning():
    """A Trainer, and its summary."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.utilities.model_summary import ModelSummary

    class Net(LightningModule):
        def __init__(self, library):
            super().__init__()
            torch.manual_seed(0)
            self.rnn = library.GRU(3, 4)
            self.losses = []

        def training_step(self, batch, _):
            loss = self.rnn(batch)[0].square().mean()
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data, runs = torch.randn(5, 4, 2, 3, generator=torch.Generator().manual_seed(1)), []
    for library in (nn, fastrnn):
        model = Net(library)
        Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            accelerator="cpu",
        ).fit(model, torch.utils.data.DataLoader(data, batch_size=None))  # fmt: skip
        runs.append((model.losses, str(ModelSummary(model)).replace("train", "")))
    apart = max(abs(a - e) for a, e in zip(runs[0][0], runs[1][0], strict=True))
    assert apart < 1e-5 and runs[0][1] == runs[1][1], runs
    return f"losses within {apart:.0e}; the same summary"


def torchinfo():
    """summary()."""
    from torchinfo import summary

    found = [summary(nn.Sequential(lib.LSTM(3, 4)), (5, 2, 3), verbose=0) for lib in (nn, fastrnn)]
    assert str(found[0]) == str(found[1]), found[1]
    return "the same table"


def ptflops():
    """get_model_complexity_info, both backends."""
    from ptflops import get_model_complexity_info

    for backend in ("pytorch", "aten"):
        counts = [
            get_model_complexity_info(
                nn.Sequential(lib.GRU(3, 4)), (5, 3), as_strings=False, backend=backend,
                print_per_layer_stat=False,
            )
            for lib in (nn, fastrnn)
        ]  # fmt: skip
        assert counts[0] == counts[1] and counts[0][0], counts
    return "the same counts by both backends"


def thop():
    """profile()."""
    from thop import profile

    counts = [
        profile(lib.GRU(3, 4), (torch.randn(5, 2, 3),), verbose=False) for lib in (nn, fastrnn)
    ]
    assert counts[0] == counts[1], counts
    return "the same counts"


class Counted(nn.Module):
    """A layer and something that every tool counts."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.linear = rnn, nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(self.rnn(x)[0])


def calflops():
    """calculate_flops()."""
    from calflops import calculate_flops

    x, counts = torch.randn(5, 2, 3), []
    for library in (nn, fastrnn):
        model = Counted(library.GRU(3, 4))
        options = {"print_results": False, "output_as_string": False}
        counts.append(calculate_flops(model, args=[x], **options))
    assert counts[0] == counts[1], counts
    return "the same counts"


def torch_pruning():
    """count_ops_and_params()."""
    from torch_pruning.utils import count_ops_and_params

    x = torch.randn(5, 2, 3)
    counts = [count_ops_and_params(Counted(lib.GRU(3, 4)), x) for lib in (nn, fastrnn)]
    assert counts[0] == counts[1], counts
    return "the same counts"


def pyro():
    """to_pyro_module_() of a converted model."""
    from pyro.nn.module import PyroModule, to_pyro_module_

    x, found = torch.randn(5, 2, 3), []
    for change in (lambda model: model, fastrnn.convert):
        torch.manual_seed(0)
        model = change(nn.Sequential(nn.LSTM(3, 4)))
        to_pyro_module_(model)
        assert isinstance(model[0], PyroModule) and isinstance(model[0], nn.LSTM)
        found.append(model[0](x)[0])
    torch.testing.assert_close(*found)
    return "the output of a converted LSTM"


PROGRAMS = {
    "transformers": transformers,
    "torchrl": torchrl,
    "sb3-contrib": sb3_contrib,
    "pytorch-forecasting": pytorch_forecasting,
    "opacus": opacus,
    "lightning": lightning,
    "accelerate": accelerate,
    "peft": peft,
    "darts": darts,
    "gluonts": gluonts,
    "captum": captum,
    "torchinfo": torchinfo,
    "ptflops": ptflops,
    "thop": thop,
    "calflops": calflops,
    "torch-pruning": torch_pruning,
    "pyro-ppl": pyro,
    "torchrecurrent": torchrecurrent,
    "ncps": ncps,
}

if __name__ == "__main__":
    print(PROGRAMS[sys.argv[1]]())
