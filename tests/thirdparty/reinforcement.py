"""Libraries for reinforcement learning."""

from __future__ import annotations

import torch
from comparison import compare
from torch import nn

import fastrnn


def torchrl():
    """LSTMModule and GRUModule, an episode ending within a row; PPO with them on CartPole."""
    from tensordict import TensorDict
    from torchrl.modules import GRUModule, LSTMModule, set_recurrent_mode

    generator, told = torch.Generator().manual_seed(1), []
    for cls, extra in ((LSTMModule, ["c"]), (GRUModule, [])):
        start = torch.zeros(2, 6, 1, dtype=torch.bool)
        start[:, 0] = start[0, 3] = True
        states = {key: torch.zeros(2, 6, 1, 4) for key in ["h", *extra]}
        obs = torch.randn(2, 6, 3, generator=generator)
        data = TensorDict({"obs": obs, "is_init": start} | states, [2, 6])
        keys = {
            "in_keys": ["obs", "h", *extra],
            "out_keys": ["out", ("next", "h"), *(("next", key) for key in extra)],
        }

        def make(cls=cls, keys=keys):
            return cls(input_size=3, hidden_size=4, **keys)

        def patched(make=make):
            with fastrnn.patch():
                return make()

        def installed(make=make):
            fastrnn.install()
            try:
                return make()
            finally:
                fastrnn.uninstall()

        def direct(cls=cls, keys=keys):
            name = cls.__name__.removesuffix("Module")
            ours = getattr(fastrnn, name)(3, 4, batch_first=True)
            return cls(**{name.lower(): ours}, **keys)

        def converted(make=make):
            return fastrnn.convert(make())

        def loss(module, data=data):
            with set_recurrent_mode(True):
                return module(data.clone())["out"].square().mean()

        told.append(compare(make, loss, patched, installed, direct, converted))
        apart = (ppo(make) - ppo(converted)).abs().max().item()
        assert apart < 1e-4, apart
    return f"{told[-1]}; parameters after 6 steps of PPO within {apart:.0e}"


def ppo(make) -> torch.Tensor:
    """The parameters after PPO on CartPole, of a policy with the layer that `make` makes."""
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torch.distributions import Categorical
    from torchrl.envs import GymEnv, InitTracker, TransformedEnv
    from torchrl.modules import ProbabilisticActor, set_recurrent_mode
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    torch.manual_seed(0)
    look = TensorDictModule(nn.Linear(4, 3), ["observation"], ["obs"])
    memory, head = make(), TensorDictModule(nn.Linear(4, 2), ["out"], ["logits"])
    policy = ProbabilisticActor(
        TensorDictSequential(look, memory, head),
        ["logits"],
        ["action"],
        distribution_class=Categorical,
        return_log_prob=True,
    )
    value = TensorDictModule(nn.Linear(4, 1), ["observation"], ["state_value"])
    env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), InitTracker())
    env.append_transform(memory.make_tensordict_primer())
    env.set_seed(0)
    loss, advantage = ClipPPOLoss(policy, value), GAE(gamma=0.99, lmbda=0.95, value_network=value)
    optimizer = torch.optim.Adam(loss.parameters(), 3e-3)
    for _ in range(3):
        torch.manual_seed(1)
        with torch.no_grad():
            data = advantage(env.rollout(64, policy, break_when_any_done=False))
        assert data["is_init"][1:].any(), "no episode ended within a row"
        for _ in range(2):
            with set_recurrent_mode(True):
                losses = loss(data)
            total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    return torch.cat([each.detach().flatten() for each in policy.parameters()])


def sb3_contrib():
    """RecurrentPPO on CartPole, and a file of it loaded again."""
    import tempfile

    from sb3_contrib import RecurrentPPO

    def trained(swap):
        agent = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=32, seed=0, device="cpu")
        swap(agent.policy)
        return agent.learn(64)

    theirs, ours = trained(lambda policy: None), trained(fastrnn.convert)
    pairs = zip(theirs.policy.parameters(), ours.policy.parameters(), strict=True)
    apart = max((a - e).abs().max().item() for a, e in pairs)
    assert apart < 1e-3, apart
    with tempfile.TemporaryDirectory() as folder:
        ours.save(f"{folder}/agent")
        loaded = RecurrentPPO.load(f"{folder}/agent", device="cpu")
    assert type(loaded.policy.lstm_actor) is nn.LSTM
    return f"parameters after 64 steps within {apart:.0e}; a loaded agent is `torch.nn`'s again"
