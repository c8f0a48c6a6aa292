"""The swap in somebody else's code: a recurrent PPO agent of sb3-contrib, with `convert`.

sb3-contrib (MIT) brings `RecurrentPPO`, whose policy holds a `torch.nn.LSTM`. The task is the
cart-pole of gymnasium (MIT; Barto, Sutton & Anderson 1983). The agent sees position and angle but
no velocities, so it has to remember. The two runs differ in one line,
`fastrnn.convert(model.policy)`. Actions, values and likelihoods of the policy are compared before
and after the conversion.

    pip install -e '.[examples]'
    python examples/drop_in.py --backend both
"""

import time

import gymnasium
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import fastrnn
from common import Run, console, libraries, parse, picture, report, save

POLES, ROLLOUT = 8, 32  # environments side by side, steps between updates
SETTINGS = {
    "n_steps": ROLLOUT,
    "batch_size": 256,
    "n_epochs": 10,
    "learning_rate": lambda left: 2e-3 * left,  # of what is left of the training, from 1 to 0
    "clip_range": lambda left: 0.2 * left,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "policy_kwargs": {"lstm_hidden_size": 64, "enable_critic_lstm": False},
}


class WithoutVelocities(gymnasium.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation):
        return observation[[0, 2]]


class Watch(BaseCallback):
    """At the end of each rollout, the share of steps at which a pole was set up anew, the steps
    that the poles stood, and the time."""

    def __init__(self):
        super().__init__()
        self.falls, self.standing, self.seconds = [], [], []
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.falls.append(float(self.model.rollout_buffer.episode_starts.mean()))
        episodes = list(self.model.ep_info_buffer)[-30:]
        self.standing.append(float(np.mean([e["l"] for e in episodes])) if episodes else 0.0)
        self.seconds.append(time.perf_counter() - self.start)


def agent(seed: int) -> RecurrentPPO:
    poles = make_vec_env("CartPole-v1", POLES, seed=seed, wrapper_class=WithoutVelocities)
    return RecurrentPPO("MlpLstmPolicy", poles, seed=seed, device="cpu", **SETTINGS)


@torch.no_grad()
def compare(seed: int) -> float:
    """The largest difference that `convert` makes to what a policy says of 20 random steps."""
    policy = agent(seed).policy
    observations = torch.randn(POLES * 20, 2)
    starts = (torch.rand(POLES * 20) < 0.1).float()
    actions = torch.randint(2, (POLES * 20,))
    zero = torch.zeros(1, POLES, 64)
    states = type(agent(seed)._last_lstm_states)((zero, zero), (zero, zero))
    before = policy.evaluate_actions(observations, actions, states, starts)
    fastrnn.convert(policy)
    after = policy.evaluate_actions(observations, actions, states, starts)
    return max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))


def learn(name: str, options) -> tuple[Run, Watch]:
    model = agent(options.seed)
    if name == "fastrnn":
        fastrnn.convert(model.policy)
    watch = Watch()
    model.learn(options.steps, callback=watch, progress_bar=console.is_terminal)
    seconds = time.perf_counter() - watch.start
    metrics = {"steps that a pole stood, last 30": watch.standing[-1]}
    return Run(watch.falls, options.steps / seconds, metrics), watch


def draw(watches: dict[str, Watch], options) -> None:
    figure, axes = picture(size=(8, 3.4))
    for name, style in (("torch", "C1-"), ("fastrnn", "C0-")):
        if name in watches:
            axes.plot(watches[name].seconds, watches[name].standing, style, label=name)
    axes.set(xlabel="seconds of training", ylabel="steps that a pole stands (of 500)")
    axes.set_title("RecurrentPPO of sb3-contrib, before and after convert()", loc="left")
    axes.legend(frameon=False)
    save(figure, "drop_in", options)


def main() -> None:
    options = parse(__doc__, steps=20_000)
    torch.set_default_dtype(torch.float32)  # sb3 knows no other
    if options.smoke:
        options.steps = 16 * POLES * ROLLOUT
    difference = compare(options.seed)
    console.print(f"convert() changes what an untrained policy says by {difference:.0e} at most")
    if difference > 1e-5:
        raise SystemExit("convert() changed the policy")
    runs, watches = {}, {}
    for name in libraries(options):
        runs[name], watches[name] = learn(name, options)
    # Rounding makes the two agents act differently sooner or later, and so live differently.
    report(runs, {}, options, loss="falls a step", tolerance=0.1)
    draw(watches, options)


if __name__ == "__main__":
    main()
