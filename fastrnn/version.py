"""The version of the package."""

from importlib import metadata

try:
    VERSION = metadata.version("fastrnn")
except metadata.PackageNotFoundError:  # a checkout on the path that is not installed
    VERSION = "0+unknown"
