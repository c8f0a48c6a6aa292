"""A cell from a paper's formula in ten lines: a Phased LSTM on demand that is seen now and then.

In a Phased LSTM (Neil, Pfeiffer & Liu 2016, arXiv 1610.09513) each unit has a rhythm of its own: a
learned period and shift. Its gate opens for a part of each period. While the gate is closed, the
unit keeps its state. So the network knows when something happened, and needs no regular steps.

The series is the half-hourly demand of the state of Victoria in 2014, see forecasting.py. Here it
is seen at random times, one in seven half hours on average, with the temperature. After each
observation the network says what the demand is at the next one. It is told the time since the
observation before and until the next, but no hour of day: rhythms have to keep the clock.

With fastrnn the step is traced, and a kernel runs it. With torch it is called in a loop over time,
as one would write it. Both use the same function. The picture shows the gates through time, which
the cell returns as a state.

    pip install -e '.[examples]'
    python examples/cells.py --backend both
"""

import math
import time
from types import SimpleNamespace

import torch
from torch import Tensor, exp, floor, nn, sigmoid, tanh, where
from torch.nn.functional import linear

import fastrnn
from common import Run, fit, libraries, parse, picture, report, save
from forecasting import DAY, TRAINED, WEEK, load

SEEN, GAP = 96, 7  # observations of a sequence, and half hours between them on average
HIDDEN, BATCH, RATE = 64, 32, 1e-2
OPEN, LEAK = 0.3, 1e-3  # the part of a period with the gate open; how far it opens in the rest


def step(g, s, p):
    turns = p.time * exp(-p.period) - p.shift
    phase = turns - floor(turns)
    rise = 2 * phase / OPEN
    k = where(rise < 1, rise, where(rise < 2, 2 - rise, LEAK * phase))
    c = sigmoid(g.f) * s.c + sigmoid(g.i) * tanh(g.z)
    h = sigmoid(g.o) * tanh(c)
    return k * h + (1 - k) * s.h, k * c + (1 - k) * s.c, k


def periods(logarithms: Tensor) -> None:
    """From eight hours to eight days."""
    logarithms.uniform_(math.log(DAY / 3), math.log(8 * DAY))


PHASED = fastrnn.Cell(
    step,
    gates="i f z o",
    states="h c k",
    params="period shift",
    inputs="time",
    init={"period": periods, "shift": lambda shift: shift.uniform_(0, 1)},
)


class Loop(nn.Module):
    """What `fastrnn.Recurrent` of one layer computes, as a loop over time in Python."""

    def __init__(self, cell: fastrnn.Cell, input_size: int, hidden_size: int):
        super().__init__()
        self.cell, self.hidden_size = cell, hidden_size
        for name, weight in fastrnn.Recurrent(cell, input_size, hidden_size).named_parameters():
            self.register_parameter(name, weight)

    def forward(self, x: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        cell, count = self.cell, len(self.cell.gates)
        state = {name: x.new_zeros(x.size(1), self.hidden_size) for name in cell.states}
        learned = {name: getattr(self, f"{name}_l0") for name in cell.params}
        outputs = []
        for t, x_part in enumerate(linear(x, self.weight_ih_l0, self.bias_ih_l0)):
            gates = x_part + linear(state["h"], self.weight_hh_l0, self.bias_hh_l0)
            now = learned | {name: each[t] for name, each in inputs.items()}
            new = cell.step(
                SimpleNamespace(**dict(zip(cell.gates, gates.chunk(count, -1), strict=True))),
                SimpleNamespace(**state),
                SimpleNamespace(**now),
            )
            state = dict(zip(cell.states, new, strict=True))
            outputs.append(state["h"])
        return torch.stack(outputs), tuple(state.values())


class Forecaster(nn.Module):
    """x (SEEN, N, 4) and times (SEEN, N, 1) in half hours -> (SEEN, N), as differences from the
    demand that is seen. `library` is torch.nn or fastrnn."""

    def __init__(self, library):
        super().__init__()
        layer = fastrnn.Recurrent if library is fastrnn else Loop
        self.rnn = layer(PHASED, 4, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        output, _ = self.rnn(x, inputs={"time": times})
        return self.out(output).squeeze(-1)


def sequences(data, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, times and y of sequences that begin at `starts` (N,), with random gaps."""
    demand, features, _ = data
    gaps = torch.randint(1, 2 * GAP, (SEEN + 1, len(starts)))
    at = starts + gaps.cumsum(0)
    seen, temperature = demand[at], features[at, 7]
    x = [seen[:-1], temperature[:-1], gaps[:-1] / GAP, gaps[1:] / GAP]
    times = (at - starts)[:-1].unsqueeze(-1).to(demand)
    return torch.stack(x, -1).to(demand), times, seen[1:] - seen[:-1]


def train(library, label: str, data, options) -> tuple[Forecaster, Run]:
    torch.manual_seed(options.seed)
    model = Forecaster(library)
    last = TRAINED - WEEK - 2 * GAP * (SEEN + 1)
    starts = torch.randint(0, last, (options.steps, BATCH))
    if options.smoke:
        starts = starts[:1, :8]
    batches = [sequences(data, row) for row in starts]
    if options.smoke:
        batches *= 30
    run = fit(
        model,
        batches,
        lambda x, times, y: (model(x, times) - y).abs().mean(),
        RATE,
        label,
        samples=lambda x, *_: x.size(1),
    )
    return model, run


@torch.no_grad()
def test(model: Forecaster, data, options) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics over sequences from October on, and those of the demand that was seen last."""
    demand, _, scale = data
    torch.manual_seed(1)
    starts = torch.arange(TRAINED - WEEK, len(demand) - 2 * GAP * (SEEN + 1), DAY // 4)
    x, times, y = sequences(data, starts)
    error = (model(x, times) - y).abs().mean().item()
    name = "mean absolute error, MW"
    metrics = {name: 1000 * scale * error}
    for count in (1, BATCH):
        fastest = math.inf
        for _ in range(2 if options.smoke else 10):
            begin = time.perf_counter()
            model(x[:, :count], times[:, :count])
            fastest = min(fastest, time.perf_counter() - begin)
        metrics[f"inference of {count}, ms"] = 1000 * fastest
    return metrics, {name: 1000 * scale * y.abs().mean().item()}


@torch.no_grad()
def draw(model: Forecaster, data, options) -> None:
    """The demand of a sequence, and below it the gates of all units, by their period."""
    torch.manual_seed(2)
    x, times, y = sequences(data, torch.tensor([TRAINED - WEEK + 20 * DAY]))
    rnn = fastrnn.Recurrent(PHASED, 4, HIDDEN)
    rnn.load_state_dict(model.rnn.state_dict())
    every = torch.arange(times[0].item(), times[-1].item()).view(-1, 1, 1).to(times)
    *_, states = rnn(x.new_zeros(len(every), 1, 4), inputs={"time": every}, return_states=True)
    order = rnn.period_l0.argsort()
    days = times.flatten() / DAY
    figure, (above, below) = picture(2, 1, (9, 4.5))
    above.plot(days, x[:, 0, 0], ".-k", lw=0.6, ms=4, label="demand as it is seen")
    forecast = x[:-1, 0, 0] + model(x, times)[:-1, 0]
    above.plot(days[1:], forecast, ".", color="tab:orange", label="forecast before it is seen")
    above.set(ylabel="standardised", xlim=(days[0], days[-1]))
    above.set_title("Demand in Victoria, seen now and then", loc="left")
    above.legend(frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.2))
    gates = states["k"][0][:, 0, 0, order].T
    below.pcolormesh(every.flatten() / DAY, range(HIDDEN), gates, cmap="Blues", shading="nearest")
    hours = (rnn.period_l0[order].exp() / 2).tolist()
    ticks = range(0, HIDDEN, 9)
    below.set(yticks=ticks, yticklabels=[f"{hours[tick]:.0f} h" for tick in ticks])
    below.set(xlabel="days", ylabel="unit, by its period")
    below.set_title("The gate of each unit: dark where it is open", loc="left")
    save(figure, "cells", options)


def main() -> None:
    options = parse(__doc__, steps=600)
    data, runs = load(), {}
    for name, library in libraries(options).items():
        model, runs[name] = train(library, name, data, options)
        runs[name].metrics, baseline = test(model, data, options)
    report(runs, baseline, options, rival="the loop")
    draw(model, data, options)


if __name__ == "__main__":
    main()
