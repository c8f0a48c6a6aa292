"""A recurrent actor-critic that has to remember: `reset=` in the update, `Streamer` in the rollout.

A corridor shows a sign, left or right, at its entrance. Its end, 5 to 20 steps later, is a
junction. The turn that the sign showed earns 1, the other one -1 (the T-maze of Bakker 2001). The
next corridor begins at once, so an episode may begin at any step of a rollout. There the state must
be zero, and no gradient may pass.

With torch.nn this is done as libraries for reinforcement learning do it. The LSTM runs in a loop of
single steps, and the state is multiplied by `1 - done` in between. With fastrnn the update is one
call with `reset=`.

The learner is advantage actor-critic (Mnih et al. 2016) with generalised advantages (Schulman et
al. 2016).

    pip install -e '.[examples]'
    python examples/recurrent_policy.py --backend both
"""

import time

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

import fastrnn
from common import Run, console, libraries, parse, picture, report, save

CORRIDORS, STEPS = 64, 64  # N side by side, T steps a rollout
SHORTEST, LONGEST = 5, 20
HIDDEN, RATE, DISCOUNT, TRACE, ENTROPY = 64, 5e-3, 0.95, 0.9, 0.01
Rollout = tuple[Tensor, Tensor, Tensor, Tensor]  # observations, resets, actions, rewards; (T, N)


class Policy(nn.Module):
    """`library` is torch.nn or fastrnn."""

    def __init__(self, library):
        super().__init__()
        self.rnn = library.LSTM(4, HIDDEN)
        self.act = nn.Linear(HIDDEN, 2)
        self.value = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor, state, reset: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, N, 4), reset (T, N) -> log-probabilities (T, N, 2) and values (T, N)."""
        if isinstance(self.rnn, fastrnn.RNNBase):
            output, _ = self.rnn(x, state, reset=reset)
        else:
            outputs = []
            for x_t, keep in zip(x, 1 - reset.to(x), strict=True):
                state = tuple(part * keep.unsqueeze(-1) for part in state)
                y_t, state = self.rnn(x_t.unsqueeze(0), state)
                outputs.append(y_t)
            output = torch.cat(outputs)
        return self.act(output).log_softmax(-1), self.value(output).squeeze(-1)


class Player:
    """The policy in a rollout: one step at a time, with the state of each corridor."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.stream = None
        if isinstance(policy.rnn, fastrnn.RNNBase):
            self.stream = fastrnn.Streamer(policy.rnn, CORRIDORS)
        self.state = (torch.zeros(1, CORRIDORS, HIDDEN), torch.zeros(1, CORRIDORS, HIDDEN))

    def begin(self):
        """Takes the weights as they are now; returns the state."""
        if self.stream is not None:
            self.stream.refresh()
            return self.stream.state
        return self.state

    def step(self, x: Tensor, reset: Tensor) -> Tensor:
        """x (N, 4), reset (N,) -> probabilities (N, 2)."""
        if self.stream is not None:
            self.stream.reset(reset)
            output = self.stream(x)
        else:
            keep = 1 - reset.to(x).unsqueeze(-1)
            self.state = tuple(part * keep for part in self.state)
            output, self.state = self.policy.rnn(x.unsqueeze(0), self.state)
            output = output[0]
        return self.policy.act(output).softmax(-1)


class Corridors:
    """CORRIDORS of them in step. Observed (N, 4): sign left, sign right, junction, noise."""

    def __init__(self, longest: int):
        self.longest = longest
        self.at = torch.zeros(CORRIDORS, dtype=torch.long)
        self.sign, self.end = torch.zeros_like(self.at), torch.zeros_like(self.at)
        self.enter(torch.ones(CORRIDORS, dtype=torch.bool))

    def enter(self, rows: Tensor) -> None:
        self.at = self.at.where(~rows, 0)
        self.sign = self.sign.where(~rows, torch.randint(2, rows.shape))
        self.end = self.end.where(~rows, torch.randint(SHORTEST, self.longest + 1, rows.shape))

    def observe(self) -> tuple[Tensor, Tensor]:
        """The observations, and which corridors are just entered (N,)."""
        entered = self.at == 0
        sign = one_hot(self.sign, 2) * entered.unsqueeze(-1)
        rest = torch.stack(
            [(self.at == self.end).to(torch.get_default_dtype()), torch.randn(CORRIDORS)], -1
        )
        return torch.cat([sign, rest], -1), entered

    def move(self, actions: Tensor) -> Tensor:
        """Rewards (N,), 0 on the way."""
        there = self.at == self.end
        reward = there * (2 * (actions == self.sign).to(torch.get_default_dtype()) - 1)
        self.at += 1
        self.enter(there)
        return reward


@torch.no_grad()
def play(player: Player, corridors: Corridors) -> Rollout:
    steps = []
    for _ in range(STEPS):
        x, reset = corridors.observe()
        actions = player.step(x, reset).multinomial(1).squeeze(-1)
        steps.append((x, reset, actions, corridors.move(actions)))
    return tuple(torch.stack(column) for column in zip(*steps, strict=True))


def loss_of(policy: Policy, state, rollout: Rollout) -> Tensor:
    x, reset, actions, rewards = rollout
    log_p, values = policy(x, state, reset)
    # The last step's successor is not known: its advantage is left out.
    advantages, known = torch.zeros_like(rewards), values.detach()
    for t in reversed(range(STEPS - 1)):
        going = 1 - reset[t + 1].to(x)
        error = rewards[t] + DISCOUNT * going * known[t + 1] - known[t]
        advantages[t] = error + DISCOUNT * TRACE * going * advantages[t + 1]
    taken = log_p.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    critic = mse_loss(values[:-1], (advantages + known)[:-1])
    return -(advantages * taken).mean() + 0.5 * critic - ENTROPY * entropy


def train(library, label: str, options) -> tuple[Run, list[float]]:
    """The run, whose losses are the share of wrong turns in each rollout, and the time of each."""
    torch.manual_seed(options.seed)
    policy, corridors = Policy(library), Corridors(options.longest)
    player, optimizer = Player(policy), torch.optim.Adam(policy.parameters(), RATE)
    run, seconds, playing, start = Run(), [], 0.0, time.perf_counter()
    rounds, quiet = range(options.rollouts), not console.is_terminal
    for _ in track(rounds, description=f"{label:8}", transient=True, disable=quiet):
        begin = time.perf_counter()
        state = player.begin()
        rollout = play(player, corridors)
        playing += time.perf_counter() - begin
        loss = loss_of(policy, state, rollout)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
        turns = rollout[-1][rollout[-1] != 0]
        run.losses.append((turns < 0).double().mean().item())
        seconds.append(time.perf_counter() - start)
    frames = options.rollouts * STEPS * CORRIDORS
    run.speed = frames / seconds[-1]
    right = 1 - sum(run.losses[-10:]) / 10
    run.metrics = {
        "right turns in the last ten rollouts, %": right,
        "frames/s, rollout": frames / playing,
        "frames/s, update": frames / (seconds[-1] - playing),
    }
    return run, seconds


def draw(runs: dict[str, Run], seconds: dict[str, list[float]], options) -> None:
    figure, axes = picture(size=(8, 3.4))
    for name, style in (("torch", "C1-"), ("fastrnn", "C0-")):
        if name in runs:
            axes.plot(seconds[name], [1 - wrong for wrong in runs[name].losses], style, label=name)
    axes.set(xlabel="seconds of training", ylabel="right turns", ylim=(0, 1.03))
    axes.set_title(f"Remembering a sign for up to {options.longest} steps", loc="left")
    axes.legend(frameon=False)
    save(figure, "recurrent_policy", options)


def main() -> None:
    options = parse(__doc__, rollouts=200, longest=LONGEST)
    if options.smoke:
        options.rollouts, options.longest = 30, SHORTEST
    runs, seconds = {}, {}
    for name, library in libraries(options).items():
        runs[name], seconds[name] = train(library, name, options)
    guessing = {"right turns in the last ten rollouts, %": 0.5}
    report(runs, guessing, options, loss="wrong turns")
    draw(runs, seconds, options)


if __name__ == "__main__":
    main()
