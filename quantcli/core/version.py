"""The version, for modules that `quantcli` itself imports."""

__version__ = "0.1.0"
