"""The workflows: they parse, and run what .ci/run does, by the targets of the Makefile."""

from __future__ import annotations

import re

import pytest
import yaml
from project import PYPROJECT, ROOT, toml

from tools import addresses

FOLDER = ROOT / ".github" / "workflows"
MAKE = re.compile(r"^\s*make\b.*", re.M)


def workflow(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def targets(command: str) -> set[str]:
    """Those that lines with make name."""
    words = [word for line in MAKE.findall(command) for word in line.split()[1:]]
    return {word for word in words if "=" not in word and not word.startswith("-")}


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_workflows_are_well_formed(name):
    """As far as a parser of YAML sees: jobs with steps that use or run something."""
    parsed = workflow(name)
    assert {"name", "jobs", "permissions", True} <= parsed.keys()  # YAML reads `on` as true
    for job in parsed["jobs"].values():
        assert set(job.get("needs", [])) <= parsed["jobs"].keys()
        assert "runs-on" in job and job["steps"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert "@" in step.get("uses", "@")


def test_the_tests_are_those_of_the_whole_check():
    jobs = workflow("test.yml")["jobs"]
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    named = set.union(*map(targets, steps))
    on_gpu = {"micro", "cuda-check"}  # which need nvcc
    assert named == targets((ROOT / ".ci" / "run").read_text()) - on_gpu
    made = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", made, re.M) for target in named)


def test_what_is_published_has_absolute_links_and_addresses():
    text, project = (ROOT / "README.md").read_text(), (ROOT / "pyproject.toml").read_text()
    link = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
    for one, image in link.findall(addresses.readme(text, "https://host/us/fastrnn", "v1")):
        kind, _, path = (one or image).removeprefix("https://host/us/fastrnn/").partition("/v1/")
        assert kind == ("raw" if path.endswith(".png") else "blob")
        assert (ROOT / path.partition("#")[0]).exists()
    published = toml(addresses.pyproject(project, "https://host/us/fastrnn", "v1"))
    assert published["project"].pop("urls")["Repository"] == "https://host/us/fastrnn"
    assert published == PYPROJECT
    jobs = workflow("wheels.yml")["jobs"]
    for name in ("wheels", "sdist"):
        assert any("tools/addresses.py" in step.get("run", "") for step in jobs[name]["steps"])


def test_wheels():
    parsed, settings = workflow("wheels.yml"), PYPROJECT["tool"]["cibuildwheel"]
    assert parsed[True]["push"] == {"tags": ["v*"]}
    publish = parsed["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}  # trusted publishing: no password
    assert publish["if"] == "github.event_name == 'push'"
    oldest = re.search(r"torch>=([\d.]+)", " ".join(PYPROJECT["project"]["dependencies"]))[1]
    assert f"torch=={oldest}." in parsed["env"]["TORCH"]
    pythons = re.findall(r"cp(\d)(\d+)-", settings["build"])
    for major, minor in pythons:
        line = f"Programming Language :: Python :: {major}.{minor}"
        assert line in PYPROJECT["project"]["classifiers"]
    excluded = "--exclude 'libtorch*' --exclude 'libc10*'"
    assert excluded in settings["linux"]["repair-wheel-command"]
    assert excluded in (ROOT / "Makefile").read_text()
