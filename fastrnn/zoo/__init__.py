"""Cells of the literature, for `fastrnn.Recurrent`.

Each is a `fastrnn.Cell`. Its step is the function of the same name in small letters, whose
docstring has the formula and the paper: `help(fastrnn.zoo.peephole_lstm)`. In a formula W
multiplies the input x, U multiplies the recurrent state, and s is the sigmoid. Biases are left out.

Example:
    >>> layer = fastrnn.Recurrent(fastrnn.zoo.PeepholeLSTM, 10, 20)
    >>> output, (h, c) = layer(torch.randn(5, 3, 10))
"""

from .gru import (
    GRUD,
    MGU,
    UGRNN,
    DreamerGRU,
    LayerNormGRU,
    LiGRU,
    OriginalGRU,
    dreamer_gru,
    gru_d,
    layer_norm_gru,
    li_gru,
    mgu,
    original_gru,
    ugrnn,
)
from .lstm import (
    CIFG,
    SLSTM,
    LayerNormLSTM,
    MultiplicativeLSTM,
    PeepholeLSTM,
    RecurrentDropoutLSTM,
    ZoneoutLSTM,
    cifg,
    layer_norm_lstm,
    multiplicative_lstm,
    peephole_lstm,
    recurrent_dropout_lstm,
    s_lstm,
    zoneout_lstm,
)
from .masks import recurrent_dropout, zoneout
from .norm import layer_norm
from .others import LIF, CfC, IndRNN, cfc, ind_rnn, lif

__all__ = [
    "CIFG",
    "CfC",
    "DreamerGRU",
    "GRUD",
    "IndRNN",
    "LIF",
    "LayerNormGRU",
    "LayerNormLSTM",
    "LiGRU",
    "MGU",
    "MultiplicativeLSTM",
    "OriginalGRU",
    "PeepholeLSTM",
    "RecurrentDropoutLSTM",
    "SLSTM",
    "UGRNN",
    "ZoneoutLSTM",
    "cfc",
    "cifg",
    "dreamer_gru",
    "gru_d",
    "ind_rnn",
    "layer_norm",
    "layer_norm_gru",
    "layer_norm_lstm",
    "li_gru",
    "lif",
    "mgu",
    "multiplicative_lstm",
    "original_gru",
    "peephole_lstm",
    "recurrent_dropout",
    "recurrent_dropout_lstm",
    "s_lstm",
    "ugrnn",
    "zoneout",
    "zoneout_lstm",
]
