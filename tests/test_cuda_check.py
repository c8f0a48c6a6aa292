"""csrc/cuda/check.py: architectures, what ptxas says, names, the table and its verdict."""

import importlib.util
import stat
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "csrc" / "cuda" / "check.py"
spec = importlib.util.spec_from_file_location("cuda_check", FILE)
sys.path.insert(0, str(FILE.parent))
check = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

# nvcc 13.0: a kernel with static shared memory that spills, the functions that it calls, one on
# another architecture.
RECORDED = """\
ptxas info    : 272 bytes gmem, 16 bytes cmem[4]
ptxas info    : Compiling entry function '_ZN1a6kernelINS_1SILin3EEELNS_1DE1ELi7EEEvPd' for 'sm_80'
ptxas info    : Function properties for _ZN1a6kernelINS_1SILin3EEELNS_1DE1ELi7EEEvPd
    1232 bytes stack frame, 1064 bytes spill stores, 1060 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1232 bytes cumulative stack size, \
256 bytes smem, 360 bytes cmem[0], 32 bytes cmem[2]
ptxas info    : Compile time = 94.700 ms
ptxas info    : Function properties for _ZN1a6calleeEPd
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _ZN1a7spillerEPd
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
t.cu(9): warning #177-D: variable "x" was declared but never referenced
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4plainPf' for 'sm_90a'
ptxas info    : Function properties for _Z4plainPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 4 registers, used 0 barriers
ptxas info    : Compile time = 1.592 ms
"""


def test_parse():
    spilling, callee, plain = check.parse(RECORDED)
    name = "_ZN1a6kernelINS_1SILin3EEELNS_1DE1ELi7EEEvPd"
    assert spilling == check.Kernel(name, "sm_80", 32, 256, 1232, 1064, 1060)
    assert callee == check.Kernel("_ZN1a7spillerEPd", "sm_80", 0, 0, 8, 4, 4)
    assert plain == check.Kernel("_Z4plainPf", "sm_90a", 4)
    assert spilling.spills and callee.spills and not plain.spills
    assert check.parse("") == []


def test_what_needs_clusters_is_compiled_where_there_are_some(monkeypatch):
    def names(listed: str, file: str) -> list[str]:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
        return [flag.split("=")[-1] for flag in check.nvcc.targets_of(Path(file))]

    assert names("8.0;9.0+PTX", "forward.cu") == ["sm_80", "sm_90", "compute_90"]
    assert names("8.0;9.0+PTX;12.0", "persistent_forward.cu") == ["sm_90", "compute_90", "sm_120"]
    assert names("8.6", "persistent_backward.cu") == ["sm_86"]  # where nothing launches it


def test_targets(monkeypatch):
    def flags(listed: str) -> list[str]:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
        return check.nvcc.targets()

    assert flags("9.0a;8.0+PTX") == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=compute_80",
    ]
    assert flags("7.5 10.0 12.0") == [  # as images list them; nothing here runs on the first
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_120,code=sm_120",
    ]
    # what came after Hopper has the code in which launches may overlap
    assert flags("") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    for wrong in ("Hopper", "9", "9.0+SASS", ";", "5.0;7.0+PTX"):
        with pytest.raises(ValueError, match="TORCH_CUDA_ARCH_LIST"):
            flags(wrong)


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("plain(float*)", "plain"),
        ("void a::kernel<a::S<(int)-3>, (a::D)1, (int)7>(double*)", "kernel<S<-3>, 1, 7>"),
        (
            "void fastrnn::cuda::forward<fastrnn::cuda::Lstm, fastrnn::cuda::Core<__half> >"
            "(fastrnn::cuda::Steps, long)",
            "forward<Lstm, Core<__half>>",
        ),
        ("a::(anonymous namespace)::hidden()", "hidden"),
        ("unsigned long f<true>(void (*)(int))", "f<true>"),
    ],
)
def test_shorten(demangled, short):
    assert check.shorten(demangled) == short


def test_table(monkeypatch):
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    head, first, second = check.table(check.parse(RECORDED)[::2]).splitlines()
    assert head.split()[:4] == ["kernel", "arch", "registers", "shared"]
    assert first.split() == ["_Z4plainPf", "sm_90a", *"40000"]
    assert second.split()[1:] == ["sm_80", "32", "256", "1232", "1064", "1060", "SPILLS"]
    assert first.index("sm_90a") == second.index("sm_80") == head.index("arch")


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """Puts an nvcc on PATH that says what the function's argument says and makes no object."""

    def put(says: str, fails_at: str = "--never") -> None:
        tool = tmp_path / "nvcc"
        (tmp_path / "says").write_text(says)
        tool.write_text(
            f'#!/bin/sh\ncat {tmp_path}/says\ncase "$*" in *{fails_at}*) exit 1;; esac\n'
        )
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return put


@pytest.mark.parametrize(
    ("says", "fails_at", "status", "expected"),
    [
        (RECORDED[RECORDED.index("t.cu(9)") :], "--never", 0, "1 kernels, 0 of them spill"),
        (RECORDED, "--never", 1, "SPILLS"),
        ("the error", "-c", 1, "one.cu does not compile:\nthe error"),
        ("the error", "-shared", 1, "fastrnn_cuda.so does not link:\nthe error"),
    ],
)
def test_verdict(nvcc, tmp_path, capsys, says, fails_at, status, expected):
    nvcc(says, fails_at)
    assert check.main(["--build", str(tmp_path / "build"), "--sources", "one.cu"]) == status
    assert expected in "".join(capsys.readouterr())


def test_no_nvcc(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert check.main(["--build", str(tmp_path)]) == 1
    assert "no nvcc" in capsys.readouterr().err
