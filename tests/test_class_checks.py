"""Code that asks for the class of a module finds that of `torch.nn`, and ours goes on computing."""

from __future__ import annotations

import abc
import copy
import copyreg
import functools
import io
import pickle

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils import parametrizations, parametrize
from torch_pairs import CELLS, LAYERS, assert_same_results, everything, example

import fastrnn
from fastrnn.interop import classes

pytestmark = pytest.mark.usefixtures("own_compilations")
ALL = LAYERS + CELLS


@pytest.fixture
def own_compilations():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def runs_ours(module: nn.Module) -> bool:
    return type(module).forward is getattr(fastrnn, module._get_name()).forward


class Doubled(fastrnn.LSTM):
    def forward(self, x):
        output = super().forward(x)[0]
        return 2 * output if self.__class__.__name__ == "Doubled" else output


class Abstract(fastrnn.GRU, abc.ABC):
    """A class with a class of its own."""


@everything
def test_isinstance(name):
    module = getattr(fastrnn, name)(4, 3)
    assert [n for n in ALL if isinstance(module, getattr(nn, n))] == [name]
    assert [n for n in ALL if isinstance(module, getattr(fastrnn, n))] == [name]
    assert type(module) is getattr(fastrnn, name)
    assert not issubclass(type(module), getattr(nn, name))  # torch.compile refuses these
    assert issubclass(module.__class__, getattr(nn, name))
    assert not isinstance(getattr(nn, name)(4, 3), getattr(fastrnn, name))
    match module:
        case nn.LSTM() | nn.LSTMCell():
            assert name.startswith("LSTM")
        case nn.GRU() | nn.GRUCell():
            assert name.startswith("GRU")
        case _:
            assert name.startswith("RNN")

    @functools.singledispatch
    def registered(module):
        return None

    registered.register(getattr(nn, name))(lambda module: name)
    assert registered(module) == name and registered(nn.Linear(1, 1)) is None


def test_isinstance_of_subclasses():
    for cls, torchs in ((Doubled, nn.LSTM), (Abstract, nn.GRU)):
        module = cls(4, 3)
        assert isinstance(module, torchs) and isinstance(module, cls)
        assert module.__class__ == cls and cls == module.__class__ and module.__class__ != torchs
        assert len({cls, module.__class__}) == 1 and repr(module.__class__) == repr(cls)
        assert module.__class__.__name__ == cls.__name__ and module.__class__.__doc__ == cls.__doc__
        assert type(module.__class__(4, 3)) is cls
        assert isinstance(cls(4, 3), module.__class__)
        assert issubclass(cls, module.__class__) and not issubclass(torchs, module.__class__)
        assert pickle.loads(pickle.dumps(module.__class__)) is cls
    assert isinstance(Abstract(4, 3), abc.ABC)


def test_what_derives_from_the_class_derives_from_ours():
    """As mixins do that libraries put onto a module which exists."""
    module, x = fastrnn.LSTM(4, 3), example("LSTM")
    wanted = module(x)
    for _ in range(2):
        module.__class__ = type("Mixed", (module.__class__,), {"mixed": True})
        assert module.mixed and isinstance(module, nn.LSTM)
        assert type(module).forward is fastrnn.LSTM.forward
        assert not issubclass(type(module), nn.LSTM) and type(type(module)) is type
        assert_same_results(module(x), wanted)
    module.__class__.mixed = False
    assert not module.mixed and "mixed" in vars(type(module))
    del module.__class__.mixed
    assert module.mixed  # that of the first class
    with pytest.raises(AttributeError):
        fastrnn.LSTM(4, 3).mixed  # noqa: B018
    with pytest.raises(TypeError):
        module.__class__ = int
    module.__class__ = nn.LSTM
    assert type(module) is nn.LSTM
    assert_same_results(module(x), wanted)


@everything
def test_copies_and_pickles(name):
    module, x = getattr(fastrnn, name)(4, 3), example(name)
    wanted = module(x)
    copies = [copy.copy(module), copy.deepcopy(module)]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copies.append(pickle.loads(pickle.dumps(module, protocol)))
        copies.append(pickle.loads(pickle._dumps(module, protocol)))  # the one in Python
    saved = io.BytesIO()
    torch.save(nn.Sequential(module), saved)
    saved.seek(0)
    copies.append(torch.load(saved, weights_only=False)[0])
    for copied in copies:
        assert type(copied) is type(module) and isinstance(copied, getattr(nn, name))
        assert_same_results(copied(x), wanted)


@everything
def test_files_of_whole_modules_load_where_their_class_is_allowed(name):
    ours, saved, x = getattr(fastrnn, name), io.BytesIO(), example(name)
    module = ours(4, 3)
    torch.save(module, saved)
    saved.seek(0)
    with torch.serialization.safe_globals([ours]):
        loaded = torch.load(saved, weights_only=True)
    assert type(loaded) is ours
    assert_same_results(loaded(x), module(x))


@everything
def test_pyro_derives_by_a_metaclass_of_its_own(name):
    """As `to_pyro_module_` does, in code of which `__name__` begins so."""
    module, x = getattr(fastrnn, name)(4, 3), example(name)
    wanted = module(x)

    class Meta(type):
        pass

    scope = {"__name__": "pyro.nn.module", "module": module, "Meta": Meta}
    exec("found = Meta('Mixed', (module.__class__,), {})", scope)
    module.__class__ = scope["found"]
    assert type(type(module)) is Meta and isinstance(module, getattr(fastrnn, name))
    assert_same_results(module(x), wanted)


@everything
def test_a_class_derived_beside_an_abc(name):
    """As `higher` derives one."""

    class Base(abc.ABC):
        @abc.abstractmethod
        def own(self): ...

    module, x = getattr(fastrnn, name)(4, 3), example(name)

    class Derived(module.__class__, Base):
        def own(self):
            return 1

    derived = Derived(4, 3)
    derived.load_state_dict(module.state_dict())
    assert isinstance(derived, Base) and isinstance(derived, getattr(nn, name))
    assert_same_results(derived(x), module(x))


@everything
def test_pickles_of_the_first_version(name):
    """They call `copyreg.__newobj__`, as pickle itself does."""
    module, x = getattr(fastrnn, name)(4, 3), example(name)

    class Old:
        def __reduce__(self):
            return copyreg.__newobj__, (type(module),), module.__getstate__()

        __class__ = property(lambda self: type(module))

    loaded = pickle.loads(pickle.dumps(Old()))
    assert type(loaded) is type(module)
    assert_same_results(loaded(x), module(x))


class Stateful(fastrnn.GRU):
    def __reduce__(self):
        return Stateful, (self.input_size, self.hidden_size), {"tag": "own"}

    def __setstate__(self, state):
        self.tag = state["tag"]


def test_a_reduce_of_the_users_is_called():
    loaded = copy.deepcopy(Stateful(4, 3))
    assert type(loaded) is Stateful and loaded.tag == "own"


def test_parametrizations():
    module, x = fastrnn.LSTM(4, 3), example("LSTM")
    wanted = module(x)
    parametrizations.weight_norm(module, "weight_hh_l0")
    assert isinstance(module, nn.LSTM) and isinstance(module, fastrnn.LSTM)
    for m in (module, copy.deepcopy(module)):
        assert type(m).forward is fastrnn.LSTM.forward
        assert_same_results(m(x), wanted)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is fastrnn.LSTM
    assert_same_results(module(x), wanted)


def test_fsdp2():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        for ours, theirs in ((fastrnn.GRU, nn.GRU), (fastrnn.GRUCell, nn.GRUCell)):
            module, other = ours(4, 3), theirs(4, 3)
            x = example(ours.__name__)
            wanted = module(x)
            mesh = distributed.init_device_mesh("cpu", (1,))
            fully_shard(other, mesh=mesh)
            fully_shard(module, mesh=mesh)
            assert isinstance(module, FSDPModule) and isinstance(module, theirs)
            assert isinstance(module, ours) and type(module).forward is ours.forward
            assert not isinstance(other, ours)
            assert_same_results(module(x), wanted)
    finally:
        distributed.destroy_process_group()


@everything
def test_compile_takes_it_whole_and_once(name):
    module, x = getattr(fastrnn, name)(4, 3), example(name)

    def call(module, x):
        return module(x)

    with torch._dynamo.config.patch(error_on_recompile=True):
        for compiled in (
            torch.compile(module, fullgraph=True, backend="eager"),
            torch.compile(nn.Sequential(module), fullgraph=True, backend="eager"),
            functools.partial(torch.compile(call, fullgraph=True, backend="eager"), module),
        ):
            for _ in range(3):
                assert_same_results(compiled(x), module(x))


def test_compiled_code_that_reads_the_class():
    module, x = Doubled(4, 3), example("LSTM")
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        for _ in range(3):
            assert_same_results(compiled(x), module(x))


def test_an_initialisation_by_class():
    def init(module):
        if isinstance(module, nn.LSTM | nn.GRUCell):
            for name, parameter in module.named_parameters():
                nn.init.orthogonal_(parameter) if "weight" in name else nn.init.zeros_(parameter)

    models = []
    for library in (fastrnn, nn):
        torch.manual_seed(0)
        models.append(nn.Sequential(library.LSTM(4, 3), library.GRUCell(4, 3)).apply(init))
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(ours, theirs)


def test_stand_ins_are_made_once():
    assert fastrnn.LSTM(4, 3).__class__ is fastrnn.LSTM(2, 1).__class__
    first, second = Doubled(4, 3), fastrnn.LSTM(4, 3)
    assert first.__class__ is not second.__class__
    assert classes._type_behind(first.__class__) is Doubled
