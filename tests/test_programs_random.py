"""Random steps as programs, also at NaN and infinity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from program_checks import check, draw

from fastrnn.programs import Cell

LEAVES = ["g.a", "g.x_b", "g.u_b", "s.h", "s.c", "s.n", "p.w", "p.dt"]
ONE = "sigmoid tanh relu sin cos abs neg square".split()
TWO = "add sub mul maximum minimum".split()
OTHERS = (
    "F.softplus({0})",
    "F.leaky_relu({0}, 0.1)",
    "F.silu({0})",
    "F.logsigmoid({0})",
    "{0}.clamp(-0.5, 1.5)",
    "{0} / (1 + {1}.abs())",
    "1 - {0}",
    "torch.lerp({0}, {1}, 0.25)",
    "torch.exp(-{0}.abs())",
    "{0}.detach()",
    "({0} - {0}.mean(-1, keepdim=True))",
    "{0} * torch.tanh({1}.sum(-1, keepdim=True))",
    # what jumps takes numbers as they were given: a rounding before it would be a jump
    "torch.where({2} < {3}, {0}, {1})",
    "torch.where(({2} > {3}) | ({2} == 0), {0}, 0.5)",
    "torch.where(~({2} <= {3}) & torch.isfinite({2}), {0}, {1})",
    "{0}.masked_fill({2} >= {3}, -1.0)",
    "torch.sign({2}) + {0}",
    "torch.floor({2}) * 0.5 + {0}",
    "({2} != {3}).to({2}.dtype) * {0}",
)


@st.composite
def steps(draw) -> tuple[str, bool]:
    """The text of a step, of which each line makes a value of those before it, and whether one of
    them is a second product."""
    known, lines = list(LEAVES), []
    forms = [f"torch.{name}({{0}})" for name in ONE] + [f"torch.{n}({{0}}, {{1}})" for n in TWO]
    forms += OTHERS
    count = draw(st.integers(3, 14))
    second = draw(st.integers(0, 2 * count))  # the line before which it stands, if there is one
    for k in range(count):
        if k == second:
            plane = known[-draw(st.integers(1, len(known)))]
            lines.append(f"    n, m = g.w_n({plane}), g.w_m({plane})")
            known += ["n", "m"]
        # the newest are taken more often, so that steps become deep
        operands = [known[-draw(st.integers(1, len(known)))] for _ in range(2)]
        given = [draw(st.sampled_from(LEAVES)) for _ in range(2)]
        lines.append(f"    v{k} = {draw(st.sampled_from(forms)).format(*operands, *given)}")
        known.append(f"v{k}")
    states = [draw(st.sampled_from(known)), *known[-2:]]
    if (
        second < count
    ):  # a matrix that nothing depends on has a gradient of zero, whatever NaN meets
        states[0] += " + n + m"
    text = "\n".join(["def step(g, s, p):", *lines, f"    return {', '.join(states)}"])
    return text, second < count


@settings(max_examples=150, deadline=None)
@given(steps(), st.sampled_from("hcn"), st.booleans(), st.integers(0, 1000))
def test_random_steps(drawn, recurrent, special, seed):
    text, second = drawn
    scope: dict = {"torch": torch, "F": F}
    exec(text, scope)
    gates = "a x:b u:b" + " w:n w:m" * second
    cell = Cell(scope["step"], gates, "h c n", "w", "dt", recurrent=recurrent, output="n")
    planes = draw(cell, 4, 5, seed)
    if special:
        numbers = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1.0]).double()
        generator = torch.Generator().manual_seed(seed)
        for kind in "xusp":
            for plane in planes[kind].values():
                where = torch.rand(plane.shape, generator=generator) < 0.1
                chosen = torch.randint(5, plane.shape, generator=generator)
                plane.copy_(torch.where(where, numbers[chosen], plane))
    check(cell, planes, 1e-6)
